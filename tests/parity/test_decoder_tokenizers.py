"""`jaxpool.tokens` against AutoTokenizer for decoders' tokenizers: who adds BOS and EOS, and what is stored in vain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from jaxpool.tokens import load_tokenizer
from tests.nasty import NASTY
from tests.parity.checkpoints import TEXTS, edit_json, write_json
from tests.parity.decoder_tokenizers import SPECIAL, bare_tokenizer, byte_level, surround, write_decoder_tokenizer
from tests.parity.test_tokenizer import NO_LIMIT, assert_same_ids

pytestmark = pytest.mark.torch

MODEL_TYPES = {"Qwen": ("qwen2", "qwen3"), "Llama": ("llama", "mistral"), "Gemma": ("gemma", "gemma2", "gemma3_text")}
PAIRS = [(kind, model_type) for kind, model_types in MODEL_TYPES.items() for model_type in model_types]
# Special tokens spelt out, where a text begins, and the character that stands for a blank.
TELLING = (
    "fox",
    " the fox",
    "the  quick </s> fox <s>lazy<eos> dog",
    "<bos> a<|endoftext|> x",
    "a▁b ▁",
    "it's 123\n\n x",
)


def same(directory: Path, limits: tuple[int, ...] = (NO_LIMIT,)) -> list[int]:
    """Compares, and returns the ids of "fox"."""
    theirs = AutoTokenizer.from_pretrained(directory)
    assert_same_ids(load_tokenizer(directory), theirs, [*TELLING, *TEXTS], limits)
    return theirs("fox").input_ids


def write(directory: Path, kind: str, model_type: str, tokenizer: Tokenizer | None = None, **config: Any) -> None:
    write_decoder_tokenizer(directory, kind, **config)
    write_json(directory / "config.json", {"model_type": model_type})
    if tokenizer is not None:
        tokenizer.save(str(directory / "tokenizer.json"))


@pytest.mark.parametrize(("kind", "model_type"), PAIRS)
def test_as_published(kind: str, model_type: str, tmp_path: Path) -> None:
    write(tmp_path, kind, model_type)
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert ours.vocab_size == len(theirs)
    assert ours.special_count == theirs.num_special_tokens_to_add() == (1 if kind == "Qwen" else 2)
    assert_same_ids(ours, theirs, [*TELLING, *TEXTS, *NASTY], (3, 17, NO_LIMIT))


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize(("kind", "model_type"), PAIRS)
def test_flags_have_no_say_beside_tokenizer_json(kind: str, model_type: str, flag: bool, tmp_path: Path) -> None:
    """transformers drops `add_bos_token` and `add_eos_token` where there is a tokenizer.json."""
    first, last = {"Qwen": (None, "<|endoftext|>"), "Llama": ("<s>", "</s>"), "Gemma": ("<bos>", "<eos>")}[kind]
    write(tmp_path, kind, model_type, add_bos_token=flag, add_eos_token=flag)
    ids = same(tmp_path)
    assert ids[-1] == SPECIAL[kind].index(last)
    assert first is None or ids[0] == SPECIAL[kind].index(first)
    bare_tokenizer(kind).save(str(tmp_path / "tokenizer.json"))
    assert len(same(tmp_path)) == 1


def _stored_otherwise(kind: str) -> Tokenizer:
    """As Llama 2's was stored: a normaliser that puts "▁" in front of whatever stands between special tokens."""
    tokenizer = bare_tokenizer(kind)
    if kind == "Qwen":
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = None
    surround(tokenizer, "", SPECIAL[kind][0])
    return tokenizer


@pytest.mark.parametrize("name", [None, "PreTrainedTokenizerFast", "Fast", ...])
@pytest.mark.parametrize(("kind", "model_type"), PAIRS)
def test_classes_that_build_their_own(kind: str, model_type: str, name: Any, tmp_path: Path) -> None:
    write(tmp_path, kind, model_type, _stored_otherwise(kind))
    own = {"Qwen": "Qwen2Tokenizer", "Llama": "LlamaTokenizer", "Gemma": "GemmaTokenizer"}[kind]
    if name is not None:
        edit_json(tmp_path / "tokenizer_config.json", tokenizer_class=own + name if name == "Fast" else name)
    same(tmp_path)


SETTINGS: dict[str, Callable[[], tuple[str, Tokenizer | None, dict[str, Any]]]] = {
    "legacy": lambda: ("Llama", None, {"legacy": True}),
    "not legacy": lambda: ("Llama", _stored_otherwise("Llama"), {"legacy": False}),
    "legacy, no prefix": lambda: ("Llama", None, {"legacy": True, "add_prefix_space": False}),
    "no prefix": lambda: ("Llama", _stored_otherwise("Llama"), {"add_prefix_space": False}),
    "bytes": lambda: ("Llama", byte_level("Llama"), {}),
    "bytes, PreTrainedTokenizerFast": lambda: (
        "Llama", byte_level("Llama"), {"tokenizer_class": "PreTrainedTokenizerFast"}),
    "Qwen2Tokenizer": lambda: ("Qwen", None, {}),
    "Qwen2Tokenizer, prefix": lambda: ("Qwen", None, {"add_prefix_space": True}),
}  # fmt: skip


@pytest.mark.parametrize("model_type", ["llama", "mistral"])
@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name: str, model_type: str, tmp_path: Path) -> None:
    kind, tokenizer, config = SETTINGS[name]()
    write(tmp_path, kind, model_type, tokenizer, **config)
    same(tmp_path)


HUGE = {
    "words": "seven wizards box with jugs of liquid, naïve café! " * 2000,
    "one word": "x" * 60_000,
    "lines": "the\nquick\nbrown\nfox\n\n" * 4000,
    "ideographs": "東京中文漢字" * 10_000,
    "blanks": " " * 60_000,
    "blanks, then words": " " * 30_000 + "the quick brown fox " * 2000,
    "digits": "1234567890" * 6000,
}


@pytest.mark.parametrize("name", HUGE)
@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_huge_texts(kind: str, name: str, tmp_path: Path) -> None:
    write(tmp_path, kind, MODEL_TYPES[kind][0])
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for limit in (3, 16, 64):
        (encoded,) = ours.encode([HUGE[name]], limit)
        assert encoded.ids.tolist() == theirs(HUGE[name], truncation=True, max_length=limit).input_ids
        assert encoded.truncated
