"""Options of single requests: Matryoshka dimensions and normalisation, mixed in one call and one program."""

import numpy as np
import pytest

from jaxpool import LLM, PoolingParams
from tests.tiny import tiny_bert

TEXTS = ["the quick fox", "a dog", "seven small birds sing", "the quick fox"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def llm(directory):
    with LLM(directory, hf_overrides={"matryoshka_dimensions": [8, 16, 32]}) as engine:
        yield engine


@pytest.fixture(scope="module")
def raw(directory):
    with LLM(directory, pooler_config={"normalize": False}) as engine:
        return engine.embed_array(TEXTS)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


MIXTURE = [
    PoolingParams(dimensions=8),
    PoolingParams(normalize=False),
    PoolingParams(dimensions=16, use_activation=False),
    PoolingParams(),
]


def test_a_mixture_in_one_call(llm, raw):
    outputs = llm.encode(TEXTS, MIXTURE, use_tqdm=False)
    expected = [unit(raw[0][:8]), raw[1], raw[2][:16], unit(raw[3])]
    for output, vector in zip(outputs, expected, strict=True):
        assert output.outputs.data.shape == vector.shape
        np.testing.assert_allclose(output.outputs.data, vector, atol=1e-6)


def test_every_mixture_is_one_program(llm):
    llm.warmup()
    compiled = llm.stats.compilations
    rng = np.random.default_rng(0)
    for _ in range(20):
        chosen = [MIXTURE[i] for i in rng.integers(0, 4, 4)]
        llm.embed(TEXTS, pooling_params=chosen, use_tqdm=False)
    assert llm.stats.compilations == compiled


def test_one_for_all(llm, raw):
    outputs = llm.embed(TEXTS, pooling_params=PoolingParams(dimensions=8), use_tqdm=False)
    np.testing.assert_allclose([o.outputs.embedding for o in outputs], unit(raw[:, :8]), atol=1e-6)


def test_by_token(directory):
    settings = {"pooler_config": {"pooling_type": "ALL", "normalize": False}, "hf_overrides": {"is_matryoshka": True}}
    with LLM(directory, **settings) as every:
        whole = every.encode(TEXTS[:2], use_tqdm=False)
        mixed = every.encode(TEXTS[:2], [PoolingParams(dimensions=5, normalize=True), PoolingParams()], use_tqdm=False)
    np.testing.assert_allclose(mixed[0].outputs.data, unit(whole[0].outputs.data[:, :5]), atol=1e-6)
    np.testing.assert_allclose(mixed[1].outputs.data, whole[1].outputs.data, atol=1e-6)


def test_a_model_that_does_not_say_so_refuses(directory):
    with LLM(directory) as plain:
        with pytest.raises(ValueError, match=r"does not support matryoshka.*dimensions must be unset \(received dim"):
            plain.embed("a dog", pooling_params=PoolingParams(dimensions=8), use_tqdm=False)
        (out,) = plain.embed("a dog", pooling_params=PoolingParams(normalize=False), use_tqdm=False)
        assert len(out.outputs.embedding) == 32


@pytest.mark.parametrize(
    ("dimensions", "message"), [(0, "greater than 0"), (-1, "greater than 0"), (5, r"\[8, 16, 32\]")]
)
def test_wrong_dimensions(llm, dimensions, message):
    with pytest.raises(ValueError, match=message):
        llm.embed("a dog", pooling_params=PoolingParams(dimensions=dimensions), use_tqdm=False)


def test_dimensions_beyond_the_vector(directory):
    with (
        LLM(directory, hf_overrides={"is_matryoshka": True}) as llm,
        pytest.raises(ValueError, match=r"range \[1, 32\]"),
    ):
        llm.embed("a dog", pooling_params=PoolingParams(dimensions=33), use_tqdm=False)


def test_not_one_a_prompt(llm):
    with pytest.raises(ValueError, match=r"lengths of prompts \(4\) and params \(3\) must be the same"):
        llm.encode(TEXTS, MIXTURE[:3], use_tqdm=False)
    with pytest.raises(ValueError, match="pooling_params: expected"):
        llm.encode(TEXTS, {"dimensions": 8}, use_tqdm=False)


def test_contradiction():
    with pytest.raises(ValueError, match="contradict"):
        PoolingParams(normalize=True, use_activation=False)
