"""`jaxpool.tokens` against transformers' AutoTokenizer: the same ids for every text at every limit."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from jaxpool.hub import resolve
from jaxpool.tokens import Tokenizer, load_tokenizer
from tests.nasty import NASTY
from tests.parity.checkpoints import TEXTS, bert_tokenizer, edit_json, read_json, write_json, write_tokenizer

pytestmark = pytest.mark.torch

NO_LIMIT = 10**9
LIMITS = (2, 3, 4, 17, 512, NO_LIMIT)
# Texts on which the settings of a BERT normaliser differ.
TELLING = ("CAFÉ Café cafe\u0301 é", "東京 THE quick中文brown", "ÅNGSTRÖM Straße SEÑOR", *TEXTS)

HUGE = {
    "words": "seven wizards box with jugs of liquid, naïve café! " * 6000,
    "one word": "x" * 300_000,
    "words joined by newlines": "the\nquick\nbrown\nfox\n" * 15_000,
    "ideographs": "東京中文漢字" * 50_000,
    "emoji": "👩\u200d👩\u200d👧🏳️\u200d🌈" * 37_500,
    "combining marks": "e" + "\u0301" * 299_999,
    "one accent a letter": "e\u0301" * 150_000,
    "punctuation": "?!" * 150_000,
    "digits": "1234567890" * 30_000,
    "arabic": "التعلم الآلي يغير العالم " * 12_000,
    "thai, without blanks": "การเรียนรู้ของเครื่อง" * 14_000,
    "blanks": " " * 300_000,
    "control characters": "\x00\x01\x1f\x7f" * 75_000,
    "blanks, then words": " " * 200_000 + "the quick brown fox " * 5000,
    "control characters, then words": "\x00" * 200_000 + "the quick brown fox " * 5000,
    "one word, then words": "x" * 200_000 + " the quick brown fox" * 5000,
    "words of 101 letters": ("y" * 101 + " ") * 3000,
    "words of 100 letters": ("y" * 100 + "\n") * 3000,
    "special tokens": "[SEP][CLS]</s><s>[MASK]<mask>" * 10_000,
}


def assert_same_ids(ours: Tokenizer, theirs: Any, texts: Sequence[str], limits: Sequence[int] = LIMITS) -> None:
    for limit in limits:
        for text, encoded in zip(texts, ours.encode(texts, limit), strict=True):
            expected = theirs(text, truncation=True, max_length=limit)["input_ids"]
            assert encoded.ids.tolist() == expected, (text[:100], limit)
            assert encoded.truncated == (len(theirs(text, truncation=False)["input_ids"]) > limit)


@cache
def minilm() -> tuple[Tokenizer, Any]:
    directory = resolve("all-MiniLM-L6-v2")
    return load_tokenizer(directory), AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module", params=[("bert", True), ("bert", False), ("mpnet", True), ("mpnet", False)], ids=str)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    kind, lowercase = request.param
    directory = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(directory, kind, lowercase=lowercase)
    return load_tokenizer(directory), AutoTokenizer.from_pretrained(directory)


def test_tiny_tokenizers(tiny: tuple[Tokenizer, Any]) -> None:
    ours, theirs = tiny
    assert ours.vocab_size == len(theirs)
    assert ours.special_count == theirs.num_special_tokens_to_add()
    assert ours.special_ids == set(theirs.all_special_ids)
    assert_same_ids(ours, theirs, [*TELLING, *NASTY])


def test_minilm() -> None:
    ours, theirs = minilm()
    assert ours.special_ids == set(theirs.all_special_ids)
    assert_same_ids(ours, theirs, [*TELLING, *NASTY, "\ud7ff", "ﷺ" * 40, "İ" * 60, "각" * 200, "\u0300abc", "#" * 700])


@pytest.mark.parametrize("name", HUGE)
def test_huge_texts(name: str) -> None:
    ours, theirs = minilm()
    whole = theirs(HUGE[name], truncation=False)["input_ids"]
    for limit in (3, 16, 256):
        (encoded,) = ours.encode([HUGE[name]], limit)
        assert encoded.ids.tolist() == (whole if len(whole) <= limit else [*whole[: limit - 1], whole[-1]])
        assert encoded.truncated == (len(whole) > limit)
        assert encoded.total <= len(whole)


@pytest.mark.parametrize("in_json", [True, False])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("bert", "BertTokenizer"),
        ("bert", "BertTokenizerFast"),
        ("bert", "PreTrainedTokenizerFast"),
        ("bert", "TokenizersBackend"),
        ("bert", "DistilBertTokenizer"),
        ("bert", ...),
        ("mpnet", "MPNetTokenizer"),
        ("mpnet", "MPNetTokenizerFast"),
        ("mpnet", ...),
    ],
)
def test_settings_over_the_stored_normaliser(kind: str, name: Any, in_json: bool, tmp_path: Path) -> None:
    """do_lower_case and its kin, given, null or missing, over a tokenizer.json that says something else."""
    write_json(tmp_path / "config.json", {"model_type": kind})
    write_tokenizer(tmp_path, kind, lowercase=in_json, tokenizer_class=name)
    stored = read_json(tmp_path / "tokenizer.json")
    stored["normalizer"] |= {"strip_accents": in_json, "handle_chinese_chars": not in_json}
    write_json(tmp_path / "tokenizer.json", stored)
    seen = set()
    for lower, accents, chinese in product((True, False, ...), (True, False, None, ...), (True, False, ...)):
        edit_json(
            tmp_path / "tokenizer_config.json",
            do_lower_case=lower,
            strip_accents=accents,
            tokenize_chinese_chars=chinese,
        )
        ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
        assert_same_ids(ours, theirs, TELLING[:3], [NO_LIMIT])
        seen.add(tuple(tuple(encoded.ids.tolist()) for encoded in ours.encode(TELLING[:3], NO_LIMIT)))
    assert len(seen) == (1 if name in ("PreTrainedTokenizerFast", "TokenizersBackend") else 8)


def test_no_tokenizer_config_at_all(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"model_type": "bert"})
    write_tokenizer(tmp_path, "bert", lowercase=False)
    (tmp_path / "tokenizer_config.json").unlink()
    assert_same_ids(load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path), TELLING)


def test_stored_truncation_and_padding_are_off(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path, "bert")
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=30)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert_same_ids(load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path), TELLING)


@pytest.mark.parametrize("config", [None, {"do_lower_case": False}, {"do_lower_case": True, "strip_accents": False}])
@pytest.mark.parametrize("kind", ["bert", "mpnet"])
def test_vocab_txt_only(kind: str, config: dict[str, Any] | None, tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path, kind)
    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (tmp_path / "vocab.txt").write_text("\n".join(word for word, _ in words) + "\n", encoding="utf-8")
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    write_json(tmp_path / "config.json", {"model_type": kind})
    if config is not None:
        write_json(tmp_path / "tokenizer_config.json", config)
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert "[UNK]" not in theirs.convert_ids_to_tokens(theirs("the fox").input_ids)
    assert_same_ids(ours, theirs, TELLING)


@cache
def small() -> tuple[Tokenizer, Any]:
    """The tiny BERT tokenizer as jaxpool wraps it, and as it is."""
    bare = bert_tokenizer()
    return Tokenizer(bare), bare


_SEPARATORS = (" ", "  ", "\n", "\t", "\u00a0", "\u3000", "\u200b", "\x00", "", "-", "東", "\u0301", " \n ")
_CHARACTERS = st.one_of(st.sampled_from("abcxyz"), st.characters(exclude_categories=["Cs"]))
_WORDS = st.one_of(
    st.sampled_from(
        ["the", "quick", "fox", "é", "e\u0301", "İ", "ﷺ", "각", "[SEP]", "[MASK]", "京", "👩\u200d👧", "\x00"]
    ),
    st.text(_CHARACTERS, max_size=12),
    st.builds(lambda char, times: char * times, _CHARACTERS, st.integers(80, 130)),
)
# A few words many times over: far beyond the threshold, with words of every length where the cut falls.
_LONG = st.lists(st.tuples(_WORDS, st.sampled_from(_SEPARATORS), st.integers(1, 40)), min_size=1, max_size=12).map(
    lambda parts: "".join((word + separator) * times for word, separator, times in parts)
)


@settings(max_examples=100, deadline=None)
@given(text=_LONG, repeats=st.integers(1, 5), limit=st.integers(2, 48))
# Words that are one [UNK] each, and the cut in the last of them, which leaves a word of many pieces.
@example(text="\n" * 85 + ("z" * 150 + "\n") * 40, repeats=1, limit=32)
@example(text=("z" * 101 + "\n") * 40, repeats=3, limit=16)
def test_precut_keeps_the_first_ids(text: str, repeats: int, limit: int) -> None:
    ours, bare = small()
    text *= repeats
    whole = bare.encode(text).ids
    (encoded,) = ours.encode([text], limit)
    assert encoded.ids.tolist() == (whole if len(whole) <= limit else [*whole[: limit - 1], whole[-1]])
    assert encoded.truncated == (len(whole) > limit)


def test_precut_inside_a_word() -> None:
    """The cut at every place of words that are one [UNK] each, and whose parts would be many pieces."""
    ours, bare = small()
    for limit, offset in product((2, 12, 40), range(0, 160, 3)):
        text = "\n" * offset + ("z" * 150 + "\n") * 60
        whole = bare.encode(text).ids
        (encoded,) = ours.encode([text], limit)
        assert encoded.ids.tolist() == [*whole[: limit - 1], whole[-1]], (limit, offset)
