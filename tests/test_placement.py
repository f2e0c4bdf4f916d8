"""Weights onto devices: the same arrays however they get there, counted, and errors that come out of threads."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from jaxpool import placement
from jaxpool.converters.rules import CheckpointError
from jaxpool.params import unstack_layers
from jaxpool.placement import load_to_mesh, stored_bytes
from jaxpool.recipe import read_recipe
from jaxpool.sharding import make_mesh
from tests.tiny import tiny_bert


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


@pytest.mark.parametrize("stacked", [True, False])
def test_progress_comes_to_the_whole(tmp_path, mesh, stacked):
    recipe, sizes = read_recipe(tiny_bert(tmp_path)), []
    load_to_mesh(recipe, mesh, "float32", stacked=stacked, progress=sizes.append)
    assert sum(sizes) == stored_bytes(recipe, "float32")
    assert len(sizes) > 10


def test_a_truncated_file_is_named(tmp_path, mesh):
    recipe = read_recipe(tiny_bert(tmp_path, max_shard_bytes=10_000))
    file = max(tmp_path.glob("model-*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=rf"{file.name} is not a whole safetensors file .* may be truncated"):
        load_to_mesh(recipe, mesh, "float32")
