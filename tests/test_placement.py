"""Weights onto devices: the same arrays however they get there, counted, and errors that come out of threads."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxpool import placement
from jaxpool.converters.export import write_safetensors
from jaxpool.converters.rules import to_checkpoint
from jaxpool.converters.transforms import CheckpointError
from jaxpool.loading import family_table
from jaxpool.params import flatten, unstack_layers
from jaxpool.placement import load_to_mesh, stored_bytes
from jaxpool.program import param_specs
from jaxpool.recipe import read_recipe
from jaxpool.sharding import make_mesh
from tests.tiny import tiny_bert, write_model


@pytest.fixture
def mesh():
    return make_mesh(jax.local_devices()[:1])


@pytest.mark.parametrize("quantization", [None, "int8", "int8_weight_only"])
def test_stacks_put_together_on_the_devices(tmp_path, mesh, monkeypatch, quantization):
    recipe = replace(read_recipe(tiny_bert(tmp_path, layers=3)), quantization=quantization)
    whole = load_to_mesh(recipe, mesh, "bfloat16")
    monkeypatch.setattr(placement, "LARGE", 0)
    assembled = load_to_mesh(recipe, mesh, "bfloat16")
    apart = load_to_mesh(recipe, mesh, "bfloat16", stacked=False)
    wanted = {**whole, "backbone": unstack_layers(whole["backbone"])}
    assert jax.tree.structure(assembled) == jax.tree.structure(whole)
    assert jax.tree.structure(apart) == jax.tree.structure(wanted)
    for found, expected in ((assembled, whole), (apart, wanted)):
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


SHARED = """
import gc, sys
from pathlib import Path
from dataclasses import replace
import jax, numpy as np
from jaxpool.placement import load_to_mesh, packed, shared
from jaxpool.recipe import read_recipe
from jaxpool.sharding import make_mesh

devices, leaves = jax.devices("cpu"), jax.tree.leaves
for dtype, quantization in ("float32", None), ("bfloat16", None), ("bfloat16", "int8"):
    recipe, mesh = replace(read_recipe(Path(sys.argv[1])), quantization=quantization), make_mesh(devices[:1])
    params = packed(load_to_mesh(recipe, mesh, dtype, stacked=False), recipe, mesh)
    other, wanted = shared(params, make_mesh(devices[1:2])), [np.array(leaf) for leaf in leaves(params)]
    assert {device for leaf in leaves(other) for device in leaf.devices()} == {devices[1]}
    addresses = [[leaf.unsafe_buffer_pointer() for leaf in leaves(tree)] for tree in (params, other)]
    assert addresses[0] == addresses[1]
    del params  # the memory stays for the one that still reads it, and is not used for others
    gc.collect()
    others = [np.full_like(values, 7) for values in wanted for _ in range(3)]
    for leaf, values in zip(leaves(other), wanted, strict=True):
        np.testing.assert_array_equal(leaf, values)
# Weights that lie over several devices are copied from each to its like.
recipe = read_recipe(Path(sys.argv[1]))
params = load_to_mesh(recipe, make_mesh(devices[:2]), "float32")
other = shared(params, make_mesh(devices[2:4]))
for leaf, values in zip(leaves(other), leaves(params), strict=True):
    assert leaf.devices() == set(devices[2:4])
    np.testing.assert_array_equal(np.asarray(leaf), np.asarray(values))
"""


def test_streams_hold_weights_once(tmp_path):
    env = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    arguments = [sys.executable, "-c", SHARED, tiny_bert(tmp_path)]
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("stacked", [True, False])
def test_progress_comes_to_the_whole(tmp_path, mesh, stacked):
    recipe, sizes = read_recipe(tiny_bert(tmp_path)), []
    load_to_mesh(recipe, mesh, "float32", stacked=stacked, progress=sizes.append)
    assert sum(sizes) == stored_bytes(recipe, "float32")
    assert len(sizes) > 10


@pytest.mark.parametrize("devices", [1, 4])
def test_loading_takes_little_beside_the_weights(tmp_path, devices):
    """At most 3 GB for a checkpoint of 16 GB in 8 files, measured on one of a 25th of it."""
    sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 8, "num_key_value_heads": 4}
    more = {"intermediate_size": 3072, "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "vocab_size": 8_000}
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **sizes, **more}
    small = write_model(
        tmp_path / "small", "LlamaForCausalLM", "llama", **sizes | more | {"hidden_size": 64, "intermediate_size": 96}
    )
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    recipe = read_recipe(tmp_path / "model")
    weights = {name: np.zeros(s.shape, jnp.bfloat16) for name, s in flatten(param_specs(recipe)).items()}
    total = sum(array.nbytes for array in weights.values())
    table = family_table(recipe).whole("backbone", "head", ())
    write_safetensors(tmp_path / "model", "model", to_checkpoint(weights, table), max_shard_bytes=total // 7)
    assert len(list((tmp_path / "model").glob("*.safetensors"))) == 8
    # Arrays of a megabyte go back to the system when they are freed, as those of 32 and more, of a real model, do.
    memory = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.loading_memory", small, tmp_path / "model", str(devices)],
        env={**os.environ, **memory, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    held, beside = map(int, done.stdout.split())
    assert total <= held < 1.01 * total
    assert beside < total * 3 / 16


HELD = """
import sys
from jaxpool import LLM
from tests.loading_memory import anonymous

small = LLM(sys.argv[1])  # what JAX needs itself is there, and all streams
before = anonymous()
large = LLM(sys.argv[2])
print(anonymous() - before)
"""


@pytest.mark.once
def test_an_engine_holds_its_weights_once_whatever_its_streams(tmp_path):
    small, large = tiny_bert(tmp_path / "small"), tiny_bert(tmp_path / "large", layers=8, hidden=640, mlp=2560)
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    arguments = [sys.executable, "-c", HELD, small, large]
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1.5 * stored_bytes(read_recipe(large), "float32")


def test_a_truncated_file_is_named(tmp_path, mesh):
    recipe = read_recipe(tiny_bert(tmp_path, max_shard_bytes=10_000))
    file = max(tmp_path.glob("model-*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=rf"{file.name} is not a whole safetensors file .* may be truncated"):
        load_to_mesh(recipe, mesh, "float32")
