"""The real model: all-MiniLM-L6-v2 against vectors that sentence-transformers made (tests/golden/make_minilm.py)."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.corpus import docstrings
from jaxpool import LLM
from jaxpool.batching import make_ladder, plan
from tests.nasty import NASTY


@pytest.fixture(scope="module")
def llm():
    with LLM("sentence-transformers/all-MiniLM-L6-v2") as engine:
        yield engine


@pytest.fixture(scope="module")
def golden():
    return np.load(Path(__file__).parent / "golden" / "minilm.npz")["vectors"]


def test_sentence_transformers_own_vectors(llm, golden):
    assert np.abs(llm.embed_array(NASTY) - golden).max() <= 1e-5


def test_one_at_a_time(llm, golden):
    for text, expected in zip(NASTY[:8], golden, strict=False):
        (out,) = llm.embed(text, truncate_prompt_tokens=-1, use_tqdm=False)
        np.testing.assert_allclose(out.outputs.embedding, expected, atol=1e-5)
        assert out.outputs.hidden_size == 384


def test_deterministic_has_the_same_vectors(golden):
    with LLM("all-MiniLM-L6-v2", deterministic=True) as engine:
        assert np.abs(engine.embed_array(NASTY) - golden).max() <= 1e-5


def test_the_tokenizers_own_truncation_is_overridden(llm):
    # Its tokenizer.json truncates and pads at 128; the model's limit is 256.
    (out,) = llm.embed("word " * 250, use_tqdm=False)
    assert len(out.prompt_token_ids) == 252
    (short,) = llm.embed("word", use_tqdm=False)
    assert len(short.prompt_token_ids) == 3


def test_padding_of_real_text(llm):
    texts = docstrings(2000)
    for limit in (256, 512):
        lengths = [len(e.ids) for e in llm.engine.tokenizer.encode(texts, limit)]
        plans, _ = plan(lengths, make_ladder(limit, 512))
        assert 1 - sum(lengths) / sum(p.shape.area for p in plans) <= 0.1


def test_bfloat16(golden):
    with LLM("all-MiniLM-L6-v2", dtype="bfloat16") as engine:
        vectors = engine.embed_array(NASTY)
    assert (vectors * golden).sum(1).min() >= 0.999
