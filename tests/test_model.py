"""`load` and `register`: the model as a function, as a linen module, and a family of one's own."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxpool
from jaxpool import LLM
from jaxpool.converters.bert import TABLE
from jaxpool.models import bert
from jaxpool.params import flatten
from tests.tiny import tiny_bert

TEXTS = ["the quick fox", "a dog", "", "seven small birds sing " * 30]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("tiny"), dense=True, pooler=False)


@pytest.fixture(scope="module")
def model(directory):
    return jaxpool.load(directory)


@pytest.fixture(scope="module")
def vectors(directory):
    with LLM(directory) as llm:
        return llm.embed_array(TEXTS)


def test_the_function_is_the_engine(model, vectors):
    inputs = model.tokenize(TEXTS)
    np.testing.assert_allclose(model.apply(model.params, inputs), vectors, atol=1e-6)
    np.testing.assert_allclose(jax.jit(model.apply)(model.params, inputs), vectors, atol=1e-6)


def test_it_can_be_differentiated(model):
    inputs = model.tokenize(TEXTS[:2])

    def loss(params):
        a, b = model.apply(params, inputs)
        return jnp.dot(a, b)

    gradients = flatten(jax.grad(loss)(jax.tree.map(jnp.asarray, model.params)))
    assert set(gradients) == set(flatten(model.params))
    assert all(np.isfinite(g).all() for g in gradients.values())
    assert np.abs(gradients["backbone/layers/mlp/up/kernel"]).max() > 0


def test_a_linen_module_has_this_very_tree(model, vectors):
    module, inputs = model.linen(), model.tokenize(TEXTS)
    np.testing.assert_allclose(module.apply({"params": model.params}, inputs), vectors, atol=1e-6)
    start = module.init(jax.random.key(0), inputs)["params"]
    assert jax.tree.structure(start) == jax.tree.structure(model.params)


def test_the_params_can_be_cast(directory):
    params = jaxpool.load(directory, dtype="bfloat16").params
    assert {str(leaf.dtype) for leaf in flatten(params).values()} == {"bfloat16"}


@pytest.fixture
def other(directory, tmp_path):
    """A checkpoint of an architecture that jaxpool has never heard of."""
    import shutil

    copy = shutil.copytree(directory, tmp_path / "other")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "architectures": ["HomeMadeModel"]}))
    return copy


def test_a_family_of_ones_own(other, vectors, monkeypatch):
    monkeypatch.setattr("jaxpool.models._REGISTERED", [])
    with pytest.raises(ValueError, match="HomeMadeModel is not supported"):
        LLM(other)
    own = replace(bert.FAMILY, name="home_made", architectures=("HomeMadeModel",), table=TABLE)
    jaxpool.register(own)
    with LLM(other) as llm:
        assert llm.recipe.family is own
        np.testing.assert_allclose(llm.embed_array(TEXTS), vectors, atol=1e-6)


def test_a_family_without_a_table_is_refused():
    with pytest.raises(ValueError, match="has no `table`"):
        jaxpool.register(bert.FAMILY)
