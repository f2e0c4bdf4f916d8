"""The real model against sentence-transformers on 300 texts: one token to far beyond the limit, many scripts."""

import numpy as np
import pytest

from benchmarks.parity import reference, thousand
from jaxpool import LLM
from jaxpool.hub import MINILM, resolve

pytestmark = pytest.mark.torch


def test_many_texts():
    texts = thousand()[:: 1000 // 300]  # `make bench` takes them all
    assert len(texts) >= 300
    with LLM(MINILM) as llm:
        vectors = llm.embed_array(texts)
        assert llm.stats.truncated > 15
    assert np.abs(vectors - reference(str(resolve(MINILM)), texts)).max() <= 1e-5
