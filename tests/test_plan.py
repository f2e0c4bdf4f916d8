"""`jaxpool plan`: which meshes of a slice hold a model, from its config.json alone."""

import json

import pytest

from jaxpool.cli import FAILED, OK, main
from jaxpool.plan import plan_slice
from jaxpool.recipe import read_recipe
from jaxpool.slices import CHIPS, Slice

QWEN2 = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "vocab_size": 152_064,
}
# Qwen/Qwen2.5-Math-RM-72B, as published.
RM_72B = QWEN2 | {
    "architectures": ["Qwen2ForRewardModel"],
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 29_568,
    "num_labels": 1,
}
# Of a 7B model, as Qwen2.5-7B: 28 heads, of which no power of two above 4 is a divisor.
EMBEDDER_7B = QWEN2 | {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 3584,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18_944,
}


def written(directory, config):
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def found(directory, config, topology, dtype="bfloat16"):
    return plan_slice(read_recipe(written(directory, config)), dtype, Slice.parse(topology))


def test_72_billion_parameters(tmp_path):
    v5e = found(tmp_path, RM_72B, "v5e:4x8")
    assert (v5e.best.data, v5e.best.model, v5e.best.fsdp) == (2, 16, False)  # keys and values whole: 8 heads for 16
    assert 71e9 < v5e.best.plan.parameters < 73e9
    (shared,) = (layout for layout in v5e.layouts if layout.fsdp and layout.model == 8)
    assert shared.problem is None
    assert 4.2e9 < shared.plan.weights < 5.5e9
    one = v5e.layouts[0]
    assert (one.data, one.model, one.fsdp, one.problem) == (32, 1, False, "does not fit")
    assert one.plan.weights > 142e9
    v6e = found(tmp_path, RM_72B, "v6e:2x4")
    assert (v6e.best.data, v6e.best.model, v6e.best.fsdp) == (1, 8, False)
    assert str(v6e.smallest[0]) == "v6e:2x4"
    v5p = found(tmp_path, RM_72B, "v5p:2x2x1")
    assert (v5p.best.data, v5p.best.model, v5p.best.fsdp) == (2, 2, False)
    assert str(v5p.smallest[0]) == "v5p:2x2x1"


def test_7_billion_parameters(tmp_path):
    gpu = found(tmp_path, EMBEDDER_7B, "h100:1")
    assert (gpu.best.data, gpu.best.model) == (1, 1)
    host = found(tmp_path, EMBEDDER_7B, "v5e:2x4")
    assert (host.best.data, host.best.model, host.best.fsdp) == (8, 1, False)
    exact = found(tmp_path, EMBEDDER_7B, "v5e:2x4", "float32")
    assert (exact.best.data, exact.best.model, exact.best.fsdp) == (4, 2, False)
    (eight,) = (layout for layout in host.layouts if layout.model == 8 and not layout.fsdp)
    assert "heads: 28 do not divide over 8 devices" in eight.problem
    assert eight.plan is None


def test_eight_bits_take_half(tmp_path):
    recipe = read_recipe(written(tmp_path, EMBEDDER_7B))
    quantised = type(recipe)(**vars(recipe) | {"quantization": "int8"})
    where = Slice.parse("v5e:1x1")
    wide, narrow = (plan_slice(which, "bfloat16", where).best.plan for which in (recipe, quantised))
    assert 0.5 < narrow.weights / wide.weights < 0.56  # embeddings stay as they are
    assert wide.activations == narrow.activations


def test_the_command(tmp_path, capsys):
    directory = str(written(tmp_path, EMBEDDER_7B))
    assert main(["plan", directory, "--topology", "v5e:2x4", "--dtype", "float32"]) == OK
    text = capsys.readouterr().out
    assert "best: data_parallel_size=4, tensor_parallel_size=2, fsdp=False" in text
    assert "smallest: v5e:" in text
    assert main(["plan", directory, "--topology", "v5e:1x1", "--dtype", "float32", "--json"]) == FAILED
    said = json.loads(capsys.readouterr().out)
    assert said["best"] is None
    assert said["smallest"]["topology"].startswith("v5e:")


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v9:2x2", "the kind is 'v9', expected one of v4"),
        ("v5e", "expected sizes behind the kind, as in v5e:2x4"),
        ("v5e:2x", "expected sizes"),
        ("v5e:0x4", "expected sizes"),
        ("", "the kind is ''"),
    ],
)
def test_what_is_no_topology(tmp_path, capsys, topology, message):
    assert main(["plan", str(written(tmp_path, EMBEDDER_7B)), "--topology", topology]) == FAILED
    assert message in capsys.readouterr().err


def test_devices_of_slices():
    assert Slice.parse("V5E:4x8").devices == 32
    assert Slice.parse("tpu7x:2x2x1").devices == 8
    assert Slice.parse("h100:8").devices == 8
    for name, chip in CHIPS.items():
        sizes = [Slice(name, shape).devices for shape in chip.slices]
        assert sizes == sorted(set(sizes))
