"""Pairs of texts, as cross-encoders read them, against transformers: ids and token types at every limit, both sides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer
from tokenizers import processors
from transformers import AutoTokenizer

from jaxpool.tokens import Tokenizer, load_tokenizer
from tests.nasty import NASTY
from tests.parity.checkpoints import TEXTS, edit_json, write_json, write_tokenizer
from tests.parity.decoder_tokenizers import bare_tokenizer, write_decoder_tokenizer
from tests.parity.encoder_tokenizers import write_encoder_tokenizer

pytestmark = pytest.mark.torch

NO_LIMIT = 10**9
SIDES = ("right", "left")


Write = Callable[[Path], None]


def _encoder(kind: str, post_processor: Any = ..., **config: Any) -> Write:
    """With another post-processor in tokenizer.json (tokenizer -> one of `tokenizers.processors`) than the class's."""

    def write(directory: Path) -> None:
        write_encoder_tokenizer(directory, kind, **config)
        if post_processor is not ...:
            tokenizer = RustTokenizer.from_file(str(directory / "tokenizer.json"))
            tokenizer.post_processor = post_processor(tokenizer)
            tokenizer.save(str(directory / "tokenizer.json"))

    return write


def _decoder(kind: str, model_type: str, post_processor: Any = ..., **config: Any) -> Write:

    def write(directory: Path) -> None:
        write_decoder_tokenizer(directory, kind, **config)
        write_json(directory / "config.json", {"model_type": model_type})
        if post_processor is not ...:
            tokenizer = bare_tokenizer(kind)
            tokenizer.post_processor = post_processor(tokenizer)
            tokenizer.save(str(directory / "tokenizer.json"))

    return write


def _odd(tokenizer: Any) -> Any:
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]", "[MASK]")]
    single, pair = "[MASK] $A [SEP] [SEP]", "[MASK] $A [SEP] [CLS]:1 $B:1 [SEP]:1 [SEP]:1"
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=ends)


def _begin_both(tokenizer: Any) -> Any:
    ends = [("<s>", tokenizer.token_to_id("<s>"))]
    return processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=ends)


def _bytes(tokenizer: Any) -> Any:
    return processors.ByteLevel(trim_offsets=False)


def _nothing(tokenizer: Any) -> None:
    return None


TYPED = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
UNTYPED = {"model_input_names": ["input_ids", "attention_mask"]}
GENERIC = {"tokenizer_class": "PreTrainedTokenizerFast"}
KINDS: dict[str, Write] = {
    "bert": _encoder("bert"),
    "bert, fast": _encoder("bert", tokenizer_class="BertTokenizerFast"),
    "bert, no class": _encoder("bert", tokenizer_class=...),
    "bert, generic class": _encoder("bert", **GENERIC),
    "bert, generic class with types": _encoder("bert", **GENERIC, **TYPED),
    "bert without types": _encoder("bert", **UNTYPED),
    "bert, electra's class": _encoder("bert", tokenizer_class="ElectraTokenizer"),
    "bert, other tokens": _encoder("bert", cls_token="[MASK]", sep_token={"__type": "AddedToken", "content": "[CLS]"}),
    "bert, stored otherwise": _encoder("bert", _odd),
    "bert, stored otherwise, generic class": _encoder("bert", _odd, tokenizer_class="TokenizersBackend", **TYPED),
    "bert, stored without": _encoder("bert", _nothing),
    "mpnet": _encoder("mpnet"),
    "mpnet, no class": _encoder("mpnet", tokenizer_class=...),
    "roberta": _encoder("roberta"),
    "roberta, no class": _encoder("roberta", tokenizer_class=...),
    "roberta, stored without": _encoder("roberta", _nothing),
    "roberta with types": _encoder("roberta", **TYPED),
    "xlm-roberta": _encoder("xlm-roberta"),
    "xlm-roberta, no class": _encoder("xlm-roberta", tokenizer_class=...),
    "xlm-roberta, stored without": _encoder("xlm-roberta", _nothing),
    "camembert": _encoder("camembert"),
    "distilbert": _encoder("distilbert"),
    "distilbert, no class": _encoder("distilbert", tokenizer_class=...),
    "modernbert": _encoder("modernbert"),
    "modernbert with types": _encoder("modernbert", **TYPED),
    "modernbert, bert's class": _encoder("modernbert", tokenizer_class="BertTokenizer"),
    "qwen2": _decoder("Qwen", "qwen2"),
    "qwen3, bytes only": _decoder("Qwen", "qwen3", _bytes),
    "qwen3, nothing": _decoder("Qwen", "qwen3", _nothing),
    "qwen3, nothing, with types": _decoder("Qwen", "qwen3", _nothing, **TYPED),
    "llama": _decoder("Llama", "llama"),
    "llama, <s> twice": _decoder("Llama", "llama", _begin_both),
    "llama, <s> twice, with types": _decoder("Llama", "llama", _begin_both, **TYPED),
    "mistral": _decoder("Llama", "mistral", _begin_both),
    "gemma": _decoder("Gemma", "gemma2"),
}


@cache
def tokenizers(kind: str) -> tuple[Tokenizer, Any]:
    directory = Path(mkdtemp())
    KINDS[kind](directory)
    return load_tokenizer(directory), AutoTokenizer.from_pretrained(directory)


def assert_same(
    ours: Tokenizer, theirs: Any, pairs: Sequence[tuple[str, str]], limits: Sequence[int], sides: Sequence[str] = SIDES
) -> None:
    for limit, side in product(limits, sides):
        theirs.truncation_side = side
        for pair, encoded in zip(pairs, ours.encode_pairs(pairs, limit, truncation_side=side), strict=True):
            # As a batch: by itself, a pair whose second text is empty would become its first text alone.
            batch = theirs(text=[pair[0]], text_pair=[pair[1]], truncation=True, max_length=limit)
            expected = {name: rows[0] for name, rows in batch.items()}
            types = expected.get("token_type_ids", [0] * len(expected["input_ids"]))
            assert encoded.ids.tolist() == expected["input_ids"], (pair, limit, side)
            assert [0] * (len(encoded.ids) - encoded.second) + [1] * encoded.second == types, (pair, limit, side)


PAIRS = [
    ("fox", "the lazy dog"),
    ("the quick brown fox jumps over the lazy dog", "naïve café"),
    ("a stitch in time saves nine; don't count", "your chickens before they hatch!"),
    ("a stitch in time", "  a stitch in time  "),
    ("", "fox"),
    ("fox", ""),
    ("", ""),
    (" ", "\n"),
    ("[SEP] </s> fox <s>", "[CLS] <bos> x <|endoftext|>"),
    ("東京の日本語 🙂", "نص عربي שלום"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_limit(kind: str) -> None:
    ours, theirs = tokenizers(kind)
    assert ours.special_count == theirs.num_special_tokens_to_add(pair=False)
    assert ours.pair_special_count == theirs.num_special_tokens_to_add(pair=True)
    least = max(ours.pair_special_count, ours.special_count, 1)  # below it transformers cuts nothing
    assert_same(ours, theirs, PAIRS, [*range(least, least + 9), 16, 23, 41, NO_LIMIT])


LIMITED = ("bert", "roberta", "qwen3, nothing", "llama")


@pytest.mark.parametrize("kind", KINDS)
def test_nasty(kind: str) -> None:
    ours, theirs = tokenizers(kind)
    texts = [*NASTY, *TEXTS]
    # Each limit below the texts' lengths costs transformers much, so the kinds that differ in their texts take it.
    limits = [17, NO_LIMIT] if kind in LIMITED else [NO_LIMIT]
    assert_same(ours, theirs, list(zip(texts, texts[7:] + texts[:7], strict=True)), limits)


@pytest.mark.parametrize("kind", KINDS)
def test_total(kind: str) -> None:
    ours, theirs = tokenizers(kind)
    for pair in PAIRS:
        whole = len(theirs(text=[pair[0]], text_pair=[pair[1]])["input_ids"][0])
        for limit in (8, 16, 64):
            (encoded,) = ours.encode_pairs([pair], limit)
            assert (encoded.total, encoded.truncated) == (whole, whole > limit)


_WORDS = st.text(st.sampled_from("abefox é東\u0301🙂.\n'1") | st.characters(exclude_categories=["Cs"]), max_size=60)


@settings(max_examples=150, deadline=None)
@given(first=_WORDS, second=_WORDS, limit=st.integers(5, 60), kind=st.sampled_from(list(KINDS)))
def test_any_text(first: str, second: str, limit: int, kind: str) -> None:
    assert_same(*tokenizers(kind), [(first, second)], [limit])


LONG = "seven wizards box with jugs of liquid, naïve café! "
# Beyond what is tokenised at first; not longer, since transformers makes an encoding of every two parts that overflow.
HUGE = [
    ("fox", LONG * 100),
    (LONG * 100, "fox"),
    (LONG * 50, LONG * 51),
    (LONG * 51, LONG * 50),
    (LONG, LONG * 50),
    ("x" * 3000, "the quick\n" * 300),
]


@pytest.mark.parametrize("kind", LIMITED)
def test_huge(kind: str) -> None:
    assert_same(*tokenizers(kind), HUGE, (17,))


def test_a_huge_text_is_hardly_tokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = tokenizers("bert")
    backend, characters = ours._backend, 0

    class Spy:
        def encode_batch_fast(self, texts: Sequence[str], **options: Any) -> Any:
            nonlocal characters
            characters += sum(map(len, texts))
            return backend.encode_batch_fast(texts, **options)

    monkeypatch.setattr(ours, "_backend", Spy())
    ours.encode_pairs([("fox", LONG * 20_000), (LONG * 20_000, "fox")], 256)
    assert characters < 100_000


@pytest.mark.parametrize("kind", KINDS)
def test_single_texts(kind: str) -> None:
    """With and without special tokens, cut on both sides."""
    ours, theirs = tokenizers(kind)
    texts = [text for pair in PAIRS for text in pair]
    for side, special, limit in product(SIDES, (True, False), (2, 3, 7, 12, NO_LIMIT)):
        if special and limit < ours.special_count:
            continue  # transformers then cuts nothing
        theirs.truncation_side = side
        for text, encoded in zip(
            texts, ours.encode(texts, limit, special_tokens=special, truncation_side=side), strict=True
        ):
            expected = theirs(text, truncation=True, max_length=limit, add_special_tokens=special)["input_ids"]
            assert encoded.ids.tolist() == expected, (text, limit, side, special)


@pytest.mark.parametrize("stored", ["Left", "Right"])
def test_side_of_a_stored_truncation(stored: str, tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path, "bert")
    tokenizer.enable_truncation(5, direction=stored.lower())
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path / "config.json", {"model_type": "bert"})
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for pair in PAIRS:
        expected = theirs(text=[pair[0]], text_pair=[pair[1]], truncation=True, max_length=9)["input_ids"][0]
        assert ours.encode_pairs([pair], 9)[0].ids.tolist() == expected


def test_template_that_no_suffix_of_types_tells(tmp_path: Path) -> None:
    def closing(tokenizer: Any) -> Any:
        ends = [("[SEP]", tokenizer.token_to_id("[SEP]"))]
        return processors.TemplateProcessing(single="$A [SEP]", pair="$A $B:1 [SEP]:0", special_tokens=ends)

    _encoder("bert", closing, **GENERIC)(tmp_path)
    assert_same(load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path), PAIRS, (7, NO_LIMIT))
    edit_json(tmp_path / "tokenizer_config.json", **TYPED)
    ours = load_tokenizer(tmp_path)
    assert ours.encode(["fox"], 9)[0].second == 0
    with pytest.raises(ValueError, match=r"tokenizer.json: a pair's token types are \(0, 1, 0\)"):
        ours.encode_pairs([("a", "b")], 9)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_token(kind: str) -> None:
    ours, theirs = tokenizers(kind)
    assert ours.pad_id == theirs.pad_token_id


@pytest.mark.parametrize("added", [{}, ...])
def test_special_tokens_in_a_file_of_their_own(added: Any, tmp_path: Path) -> None:
    write_encoder_tokenizer(tmp_path, "bert", pad_token="[UNK]", added_tokens_decoder=added)
    write_json(tmp_path / "special_tokens_map.json", {"pad_token": {"content": "[MASK]"}, "cls_token": "[MASK]"})
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert ours.pad_id == theirs.pad_token_id == ours.token_id("[MASK]" if added is ... else "[UNK]")
    assert_same(ours, theirs, PAIRS, (9,))


@pytest.mark.parametrize(
    ("stored", "in_file"),
    [(None, None), ("a", None), (None, "b"), ("a", "b"), ([{"name": "default", "template": "a"}], None)],
)
def test_chat_template(stored: Any, in_file: str | None, tmp_path: Path) -> None:
    write_encoder_tokenizer(tmp_path, "bert", chat_template=stored)
    if in_file is not None:
        (tmp_path / "chat_template.jinja").write_text(in_file, encoding="utf-8")
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert ours.chat_template == (theirs.get_chat_template() if theirs.chat_template else None)


@pytest.mark.parametrize("kind", KINDS)
def test_cut_text(kind: str) -> None:
    """Never too many tokens; and all there may be, unless the end of a word or a character stands in the way."""
    ours, theirs = tokenizers(kind)

    def count(text: str) -> int:
        return len(theirs(text, add_special_tokens=False)["input_ids"])

    for text, tokens in product([*NASTY, *TEXTS], (0, 1, 2, 5, 16, 64)):
        first = ours.cut_text(text, tokens, truncation_side="right")
        last = ours.cut_text(text, tokens, truncation_side="left")
        assert text.startswith(first)
        assert text.endswith(last)
        assert max(count(first), count(last)) <= tokens
        if count(text) <= tokens:
            assert first == last == (text if tokens else "")
            continue
        offsets = theirs(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        longest = text[: offsets[tokens - 1][1]] if tokens else ""
        if count(longest) <= tokens:  # it ends within no character, composed ones included
            assert first == longest, (text, tokens)
