"""Texts longer than the model, embedded in parts: the same as doing it by hand."""

import numpy as np
import pytest

from jaxpool import LLM, PoolingParams
from jaxpool.batch import Sequence
from jaxpool.chunks import split
from jaxpool.hosts import Alone
from tests.tiny import tiny_bert

LIMIT, LONGEST = 16, 70
WORDS = "the quick brown fox jumps over a lazy dog while seven small birds sing".split()


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    with LLM(
        tiny_bert(tmp_path_factory.mktemp("tiny"), positions=LIMIT),
        pooler_config={"enable_chunked_processing": True, "max_embed_len": LONGEST},
        hf_overrides={"is_matryoshka": True},
        data_parallel_size=1,
        max_num_batched_tokens=64,
    ) as engine:
        yield engine


def text(tokens):
    """A text of so many tokens, [CLS] and [SEP] included."""
    return " ".join(WORDS[i * i % len(WORDS)] for i in range(tokens - 2))


def by_hand(llm, ids, *, dimensions=32, normalise=True):
    parts = [ids[i : i + LIMIT] for i in range(0, len(ids), LIMIT)]
    options = PoolingParams(dimensions=dimensions, normalize=normalise)
    vectors = llm.embed([{"prompt_token_ids": part} for part in parts], pooling_params=options, use_tqdm=False)
    mean = np.average([v.outputs.embedding for v in vectors], axis=0, weights=[len(part) for part in parts])
    return mean / np.linalg.norm(mean) if normalise else mean


@pytest.mark.parametrize("tokens", [5, LIMIT, LIMIT + 1, 2 * LIMIT, 2 * LIMIT + 7, LONGEST])
@pytest.mark.parametrize("options", [{}, {"normalise": False}, {"dimensions": 5}], ids=str)
def test_as_by_hand(llm, tokens, options):
    params = PoolingParams(dimensions=options.get("dimensions"), normalize=options.get("normalise"))
    (out,) = llm.embed(text(tokens), pooling_params=params, use_tqdm=False)
    assert len(out.prompt_token_ids) == tokens
    np.testing.assert_allclose(out.outputs.embedding, by_hand(llm, out.prompt_token_ids, **options), atol=1e-6)


def test_all_ways_agree_and_nothing_is_cut(llm):
    cut, computed = llm.stats.truncated, llm.stats.texts
    texts = [text(n) for n in (40, 5, 17, 40, LONGEST, 16)]
    array = llm.embed_array(texts)
    assert llm.stats.truncated == cut
    assert llm.stats.texts > computed
    np.testing.assert_allclose(np.stack(list(llm.embed_stream(texts))), array, atol=1e-6)
    np.testing.assert_allclose([o.outputs.embedding for o in llm.embed(texts, use_tqdm=False)], array, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(array, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(array[0], array[3])
    scores = llm.score(texts[0], texts[1:], use_tqdm=False)
    np.testing.assert_allclose([s.outputs.score for s in scores], array[1:] @ array[0], atol=1e-6)


def test_the_last_window_is_known_by_its_texts_and_not_by_their_parts():
    long, *short = (Sequence(np.ones(n, np.int32), (i,)) for i, n in enumerate((4 * LIMIT, 3, 3)))
    windows = [[window, last] for window, last in Alone().windows([split(long, LIMIT), short[:1], short[1:]], 3)]
    assert [len(window) for window, _ in windows] == [4, 1, 1]
    assert [last for _, last in windows] == [False, False, True]


def test_longer_than_max_embed_len(llm):
    message = rf"maximum context length is {LONGEST} tokens. However, your prompt contains at least {LONGEST + 1} input"
    for prompt in (text(LONGEST + 1), [5] * (LONGEST + 1)):
        with pytest.raises(ValueError, match=message):
            llm.embed(prompt, use_tqdm=False)


def test_what_cuts_does_so_at_max_embed_len(llm):
    cut, longer = llm.stats.truncated, text(LONGEST + 5)
    whole = llm.engine.tokenizer.encode([longer], 10**6)[0].ids
    kept = [*whole[: LONGEST - 1].tolist(), int(whole[-1])]
    np.testing.assert_allclose(llm.embed_array([longer]), llm.embed_array([kept]), atol=1e-6)
    np.testing.assert_allclose(next(llm.embed_stream([longer])), llm.embed_array([kept])[0], atol=1e-6)
    assert llm.stats.truncated == cut + 2


def test_a_call_may_cut_instead(llm):
    long, cut = text(40), llm.stats.truncated
    (out,) = llm.embed(long, truncate_prompt_tokens=9, use_tqdm=False)
    assert len(out.prompt_token_ids) == 9
    (own,) = llm.embed(long, pooling_params=PoolingParams(truncate_prompt_tokens=9), use_tqdm=False)
    np.testing.assert_allclose(own.outputs.embedding, out.outputs.embedding, atol=1e-6)
    assert llm.stats.truncated == cut + 2


def test_tokens_are_not_averaged(llm):
    with pytest.raises(ValueError, match=rf"maximum context length is {LIMIT} tokens"):
        llm.encode(text(LIMIT + 1), pooling_task="token_embed", use_tqdm=False)


def test_without_it(llm):
    with LLM(llm.model, data_parallel_size=1) as plain, pytest.raises(ValueError, match=rf"length is {LIMIT} tokens"):
        plain.embed(text(LIMIT + 1), use_tqdm=False)
    assert "longer texts in parts" in repr(llm)
