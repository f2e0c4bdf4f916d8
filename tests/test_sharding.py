"""One program over several devices: the same answers as one device gives, whatever is split; what does not divide."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from jaxpool import LLM, sharding
from jaxpool.params import ParamSpec
from tests.sharded import LAYOUTS
from tests.tiny import tiny_bert, write_model

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
DECODER = SIZES | {"num_key_value_heads": 2, "rms_norm_eps": 1e-6, "head_dim": 8}
MODELS = {
    "an encoder": ("BertModel", "bert", {}, SIZES),
    "a causal decoder with grouped queries": ("Qwen3ForCausalLM", "qwen3", {}, DECODER),
    "a reward model": ("Qwen2ForRewardModel", "qwen2", {"num_labels": 1}, DECODER),
    "a cross-encoder": ("BertForSequenceClassification", "bert", {"num_labels": 1}, SIZES),
}
TEXTS = [
    "a stitch in time",
    "the quick brown fox jumps over a lazy dog",
    "x",
    "hello, my name is nobody; what is yours?",
]


def answers(directory, **how):
    """All numbers of one device's answers, and the bytes of its weights."""
    with LLM(directory, dtype="float32", **how) as llm:
        found = [answer.outputs.data.ravel() for answer in llm.encode(TEXTS, use_tqdm=False)]
        return np.concatenate(found), llm.memory_plan().weights


@pytest.mark.parametrize("kind", MODELS)
def test_eight_devices_answer_as_one(kind, tmp_path):
    architecture, family, more, sizes = MODELS[kind]
    directory = write_model(tmp_path / "model", architecture, family, **more, **sizes)
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    arguments = [sys.executable, "-m", "tests.sharded", directory, tmp_path / "found.npz", *TEXTS]
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    exact, whole = answers(directory)
    rounded, _ = answers(directory, quantization="int8")
    found = np.load(tmp_path / "found.npz")
    for name, layout in LAYOUTS.items():
        # Numbers that lie between two integers may be rounded either way, by the order of a sum.
        wanted, near = (rounded, 0.02) if "quantization" in layout else (exact, 1e-5)
        np.testing.assert_allclose(found[name], wanted, atol=near * max(1, np.abs(wanted).max()), err_msg=name)
        planned, held = found[f"{name} bytes"]
        assert planned == held, name
        assert held < whole or name == "dp8", name
    # Where hidden states are split along the sequence, pooled rows (or a head's answers to every token) alone are put
    # together.
    assert tuple(found["hidden"]) not in {tuple(sizes) for sizes in found["gathered"]}
    assert found["fsdp4 tp2 bytes"][1] < found["dp4 tp2 bytes"][1] < whole


MESH = AbstractMesh((2, 4), ("data", "model"))


def spec(shape, *axes, **more):
    return ParamSpec(shape, axes, **more)


def test_where_parameters_go():
    kernel = spec((3, 32, 8, 4), "layers", "embed", "heads", "head_dim")
    assert sharding.param_partition(kernel, MESH) == PartitionSpec(None, None, "model", None)
    assert sharding.param_partition(kernel, MESH, fsdp=True) == PartitionSpec(None, "data", "model", None)
    vector = spec((3, 32), "layers", "embed")
    assert sharding.param_partition(vector, MESH, fsdp=True) == PartitionSpec(None, None)
    head = spec((32, 3), "embed", "pooled", dtype="float32")
    assert sharding.param_partition(head, MESH, fsdp=True) == PartitionSpec(None, None)
    table = spec((101, 32), "vocab", "embed")  # 101 words do not divide: every device has all
    assert sharding.param_partition(table, MESH) == PartitionSpec(None, None)
    assert sharding.param_partition(spec((2, 8), "kv_heads", "head_dim"), MESH) == PartitionSpec(None, None)
    only_data = AbstractMesh((8,), ("data",))
    assert sharding.param_partition(kernel, only_data) == PartitionSpec(None, None, None, None)


def test_what_does_not_divide_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"heads: 6 do not divide over 4 devices \(mesh axis 'model'\)"):
        sharding.param_partition(spec((32, 6, 4), "embed", "heads", "head_dim"), MESH)
    with pytest.raises(ValueError, match=r"mlp: 50 do not divide over 4 devices"):
        sharding.param_partition(spec((32, 50), "embed", "mlp"), MESH)
    with pytest.raises(ValueError, match=r"embed: 33 do not divide over 2 devices \(mesh axis 'data'\)"):
        sharding.param_partition(spec((33, 8), "embed", "mlp"), MESH, fsdp=True)


def test_sizes_that_cannot_be(tmp_path):
    directory, devices = tiny_bert(tmp_path), len(jax.local_devices())
    mesh = sharding.make_mesh(jax.local_devices()[:1])
    for arguments, message in [
        ({"tensor_parallel_size": 0}, "tensor_parallel_size is 0, expected at least 1"),
        ({"tensor_parallel_size": 1000}, f"tensor_parallel_size is 1000, but there are {devices} devices"),
        ({"data_parallel_size": 1000}, f"data_parallel_size is 1000, but there are {devices} devices"),
        ({"mesh": mesh, "data_parallel_size": 1}, "mesh: says the sizes itself"),
        ({"mesh": jax.make_mesh((1,), ("x",))}, "expected one named 'data'"),
    ]:
        with pytest.raises(ValueError, match=message):
            LLM(directory, **arguments)


def test_nothing_is_said_without_a_mesh():
    x = jax.numpy.zeros((4, 8, 2))
    assert sharding.constrain(x, ("rows", "tokens", None)) is x
