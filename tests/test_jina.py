"""jina-embeddings-v3 through `LLM`: an adapter a request, in one program."""

import numpy as np
import pytest

from jaxpool import LLM, PoolingParams
from tests.tiny import JINA_TASKS, tiny_jina

NAMES = (*JINA_TASKS, "none", None)
TEXT = "the quick brown fox"


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    directory = tiny_jina(tmp_path_factory.mktemp("jina"))
    with LLM(
        directory, trust_remote_code=True, data_parallel_size=1, max_model_len=32, max_num_batched_tokens=64
    ) as engine:
        engine.warmup()
        yield engine


@pytest.fixture(scope="module")
def alone(llm):
    """The vector of `TEXT` by adapter, each computed in a call of its own."""
    return {name: llm.embed_array([TEXT], pooling_params=PoolingParams(adapter=name))[0] for name in NAMES}


def test_the_default_is_the_last(alone):
    np.testing.assert_array_equal(alone[None], alone["text-matching"])
    for i, name in enumerate(NAMES[:-1]):
        assert all(np.abs(alone[name] - alone[other]).max() > 1e-3 for other in NAMES[:i])


def test_mixed_in_one_call_as_each_alone(llm, alone):
    compiled = llm.stats.compilations
    for seed in range(3):
        names = [NAMES[i] for i in np.random.default_rng(seed).permutation(np.arange(14) % 7)]
        params = [PoolingParams(adapter=name) for name in names]
        outputs = llm.embed([TEXT] * len(names), pooling_params=params, use_tqdm=False)
        for name, output in zip(names, outputs, strict=True):
            np.testing.assert_allclose(output.outputs.embedding, alone[name], atol=1e-6)
    assert llm.stats.compilations == compiled


def test_adapters_and_dimensions(llm, alone):
    compiled = llm.stats.compilations
    params = [PoolingParams(adapter="separation", dimensions=d) for d in (12, 36)]
    short, whole = llm.embed([TEXT] * 2, pooling_params=params, use_tqdm=False)
    expected = alone["separation"][:12]
    np.testing.assert_allclose(short.outputs.embedding, expected / np.linalg.norm(expected), atol=1e-6)
    np.testing.assert_allclose(whole.outputs.embedding, alone["separation"], atol=1e-6)
    for dimensions in (-1, 5, 16):
        with pytest.raises(ValueError, match="(?i)dimensions"):
            llm.embed(TEXT, pooling_params=PoolingParams(dimensions=dimensions), use_tqdm=False)
    assert llm.stats.compilations == compiled


def test_an_unknown_adapter(llm):
    with pytest.raises(ValueError, match=r"adapter is 'translation', expected one of \['retrieval.query', .*'none'\]"):
        llm.embed(TEXT, pooling_params=PoolingParams(adapter="translation"), use_tqdm=False)


def test_what_the_instance_says(llm):
    assert f"adapters: {', '.join(JINA_TASKS)}" in repr(llm)
    assert llm.recipe.adapters == tuple(JINA_TASKS)
    query = llm.embed_array(["a dog"], prompt_name="retrieval.query")
    written = llm.embed_array([f"{llm.recipe.prompts['retrieval.query']}a dog"])
    np.testing.assert_allclose(query, written, atol=1e-6)
