"""How a call's texts are read: vLLM's truncation and tokenisation arguments, old and new, and prompts as token ids."""

import numpy as np
import pytest

from jaxpool import LLM, PoolingParams
from tests.tiny import tiny_bert, tiny_classifier

SETTINGS = {"data_parallel_size": 1, "max_num_batched_tokens": 64}
TEXT = "the quick brown fox jumps over a lazy dog"
LONG = " ".join([TEXT] * 10)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    with LLM(tiny_bert(tmp_path_factory.mktemp("embedder")), **SETTINGS) as engine:
        yield engine


def ids(llm, prompts=TEXT, **arguments):
    return [output.prompt_token_ids for output in llm.encode(prompts, use_tqdm=False, **arguments)]


# tokenization_kwargs, and which of the text's own tokens stand between [CLS] and [SEP]
KEPT = [
    ({}, slice(None)),
    ({"truncate_prompt_tokens": 5}, slice(3)),
    ({"truncate_prompt_tokens": -1}, slice(None)),
    ({"truncation": True, "max_length": 5}, slice(3)),
    ({"truncation": "longest_first", "max_length": 5}, slice(3)),
    ({"truncation": True}, slice(None)),
    ({"truncation": False, "max_length": 5}, slice(None)),
    ({"truncate_prompt_tokens": 5, "truncation": True, "max_length": 7}, slice(3)),
    ({"truncate_prompt_tokens": 5, "truncation_side": "right"}, slice(3)),
    ({"truncate_prompt_tokens": 5, "truncation_side": "left"}, slice(-3, None)),
    ({"truncate_prompt_tokens": None, "truncation_side": "left"}, slice(None)),
    ({"padding": "max_length", "max_length": 8, "return_tensors": "np"}, slice(None)),
    ({"do_lower_case": False}, slice(None)),
]


def test_tokenization_kwargs(llm):
    ((cls, *inner, sep),) = ids(llm)
    assert len(inner) == 9
    for options, kept in KEPT:
        assert ids(llm, tokenization_kwargs=options) == [[cls, *inner[kept], sep]], options
    bare = {"add_special_tokens": False}
    assert ids(llm, tokenization_kwargs=bare) == [inner]
    assert ids(llm, tokenization_kwargs=bare | {"truncate_prompt_tokens": 4}) == [inner[:4]]
    left = {"truncation": True, "truncation_side": "left"}
    ((*_, before, last),) = ids(llm, LONG, tokenization_kwargs=left)
    assert (before, last) == (inner[-1], sep)


def test_every_method_takes_them(llm):
    options = {"tokenization_kwargs": {"truncate_prompt_tokens": 5}}
    (old,) = llm.embed(TEXT, truncate_prompt_tokens=5, use_tqdm=False)
    (new,) = llm.embed(TEXT, use_tqdm=False, **options)
    assert new.prompt_token_ids == old.prompt_token_ids
    assert new.outputs == old.outputs
    (score,) = llm.score(TEXT, TEXT, use_tqdm=False, **options)
    assert score.prompt_token_ids == [*old.prompt_token_ids, 0, *old.prompt_token_ids]


ERRORS = [
    ({"truncate_prompt_tokens": 65}, r"truncate_prompt_tokens value \(65\) is greater than max_model_len \(64\)"),
    ({"truncate_prompt_tokens": 2}, "truncate_prompt_tokens is 2, expected -1 or more than the 2 special tokens"),
    ({"truncate_prompt_tokens": "5"}, "truncate_prompt_tokens is '5', expected an int or None"),
    ({"truncate_prompt_tokens": True}, "truncate_prompt_tokens is True"),
    ({"truncation": True, "max_length": 65}, r"value \(65\) is greater than max_model_len"),
    ({"truncation": "only_first"}, "truncation is 'only_first', expected True, False or 'longest_first'"),
    ({"truncation_side": "middle"}, "truncation_side is 'middle', expected 'left' or 'right'"),
    ({"do_lower_case": True}, "do_lower_case is False in this checkpoint"),
    ({"stride": 3, "is_split_into_words": True}, r"\['is_split_into_words', 'stride'\] are not supported"),
]


@pytest.mark.parametrize(("options", "message"), ERRORS, ids=str)
def test_wrong_tokenization_kwargs(llm, options, message):
    with pytest.raises(ValueError, match=message):
        ids(llm, tokenization_kwargs=options)


def test_both_ways_of_truncating(llm):
    both = {"tokenization_kwargs": {"truncate_prompt_tokens": 5}}
    assert ids(llm, truncate_prompt_tokens=5, **both) == ids(llm, **both)
    with pytest.raises(ValueError, match="truncate_prompt_tokens is 6 and in tokenization_kwargs 5: give only one"):
        ids(llm, truncate_prompt_tokens=6, **both)


def test_each_prompt_its_own_limit(llm):
    (whole,), prompts = ids(llm), [LONG, TEXT, TEXT, TEXT]
    params = [PoolingParams(truncate_prompt_tokens=k) for k in (-1, 5, None, 7)]
    cut, five, rest, seven = ids(llm, prompts, pooling_params=params)
    assert len(cut) == 64
    assert (five, rest, seven) == ([*whole[:4], whole[-1]], whole, [*whole[:6], whole[-1]])
    # A prompt's own limit goes before the call's.
    assert ids(llm, prompts, pooling_params=params, truncate_prompt_tokens=6)[1:] == [
        five, [*whole[:5], whole[-1]], seven
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"prompts\[1\]: This model's maximum context length is 64 tokens"):
        ids(llm, [TEXT, LONG, TEXT, TEXT], pooling_params=params[1:] + params[:1])
    with pytest.raises(ValueError, match="is greater than max_model_len"):
        ids(llm, pooling_params=PoolingParams(truncate_prompt_tokens=65))


def test_prompts_as_token_ids(llm):
    (text,) = llm.embed(TEXT, use_tqdm=False)
    own = text.prompt_token_ids
    for form in (own, [own], {"prompt_token_ids": own}):
        (new,) = llm.embed(form, use_tqdm=False)
        (old,) = llm.embed(prompt_token_ids=form, use_tqdm=False)
        assert new.prompt_token_ids == old.prompt_token_ids == own
        np.testing.assert_allclose(new.outputs.embedding, text.outputs.embedding, atol=1e-6)
        np.testing.assert_allclose(old.outputs.embedding, text.outputs.embedding, atol=1e-6)
    assert ids(llm, [own, own[:3]], truncate_prompt_tokens=4) == [own[:4], own[:3]]
    with pytest.raises(ValueError, match="prompts and prompt_token_ids: give only one"):
        llm.encode(TEXT, prompt_token_ids=own, use_tqdm=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({}, "prompts: expected a text, .* got None"), ({"prompts": []}, "You must pass at least one prompt")],
)
def test_nothing_to_encode(llm, arguments, message):
    with pytest.raises(ValueError, match=message):
        llm.encode(use_tqdm=False, **arguments)


def test_token_types(tmp_path):
    with LLM(tiny_classifier(tmp_path, labels=1), **SETTINGS) as llm:
        (score,) = llm.score("the quick fox", "a lazy dog", use_tqdm=False)
        pair = score.prompt_token_ids
        first = pair.index(pair[-1]) + 1
        types = [0] * first + [1] * (len(pair) - first)
        typed = [{"prompt_token_ids": pair, "token_type_ids": t} for t in (types, [0] * len(pair))]
        (same,), (other,) = (llm.classify(prompt, use_tqdm=False) for prompt in typed)
        assert same.outputs.probs == pytest.approx([score.outputs.score], abs=1e-6)
        assert other.outputs.probs != pytest.approx([score.outputs.score], abs=1e-6)
        for side, kept in (("right", slice(0, 6)), ("left", slice(-6, None))):
            cut = {"truncate_prompt_tokens": 6, "truncation_side": side}
            (by_cutting,) = llm.classify(typed[0], use_tqdm=False, tokenization_kwargs=cut)
            by_hand = {"prompt_token_ids": pair[kept], "token_type_ids": types[kept]}
            assert by_cutting.outputs == llm.classify(by_hand, use_tqdm=False)[0].outputs
        for wrong, message in (
            (types[1:], rf"prompts\['token_type_ids'\]: expected {len(pair)} ints, one a token"),
            (types[::-1], "expected zeros, then ones"),
        ):
            with pytest.raises(ValueError, match=message):
                llm.classify({"prompt_token_ids": pair, "token_type_ids": wrong}, use_tqdm=False)
        with pytest.raises(ValueError, match="expected exactly one of"):
            llm.classify({"prompt": "the fox", "token_type_ids": types}, use_tqdm=False)
