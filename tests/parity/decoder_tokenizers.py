"""Tiny tokenizers of the kinds that decoders have: byte-level BPE (Qwen, Llama 3), and BPE with "▁" for blanks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tests.parity.checkpoints import CORPUS, edit_json, write_json

QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = {
    "Qwen": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    "Llama": ("<unk>", "<s>", "</s>"),
    "Gemma": ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>"),
}


def _merges(words: list[str], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Merges that build each word from the left; their pieces go into the vocabulary."""
    merges: dict[tuple[str, str], None] = {}
    for word in words:
        for end in range(2, len(word) + 1):
            merges[word[: end - 1], word[end - 1]] = None
            vocabulary.setdefault(word[:end], len(vocabulary))
    return list(merges)


def _words() -> list[str]:
    return sorted({word for line in CORPUS for word in re.findall(r"\w+", line)})


def byte_level(kind: str = "Qwen") -> Tokenizer:
    """Qwen's: NFC, its own words, bytes; no unknown token."""
    vocabulary = {token: i for i, token in enumerate(SPECIAL[kind])}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[character] = len(vocabulary)
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words = [spelt for word in _words() for text in (word, f" {word}") for spelt, _ in spell.pre_tokenize_str(text)]
    merges = _merges(words, vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated"), spell])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL[kind]])
    return tokenizer


def blanks_spelt(kind: str) -> Tokenizer:
    """Llama's and Gemma's: "▁" for a blank, and bytes for what the vocabulary lacks."""
    vocabulary = {token: i for i, token in enumerate(SPECIAL[kind])}
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    for character in sorted({"▁", *"".join(CORPUS)} - {" "}):
        vocabulary.setdefault(character, len(vocabulary))
    merges = _merges([text for word in _words() for text in (word, f"▁{word}")], vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if kind == "Gemma":
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL[kind]])
    return tokenizer


def bare_tokenizer(kind: str) -> Tokenizer:
    """The tokenizer of a kind, without a post-processor."""
    return byte_level() if kind == "Qwen" else blanks_spelt(kind)


def surround(tokenizer: Tokenizer, first: str = "", last: str = "") -> None:
    """A post-processor that puts the tokens there are before and behind a text."""
    names = [name for name in (first, last) if name]
    single = " ".join(filter(None, (first, "$A", last)))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[(name, tokenizer.token_to_id(name)) for name in names]
    )


_KINDS: dict[str, tuple[str, str, str, dict[str, str]]] = {
    # kind -> first token, last token, class, the tokens' names in tokenizer_config.json
    "Qwen": ("", "<|endoftext|>", "Qwen2Tokenizer", {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}),
    "Llama": ("<s>", "</s>", "LlamaTokenizer",
              {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}),
    "Gemma": ("<bos>", "<eos>", "GemmaTokenizer",
              {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}),
}  # fmt: skip


def write_decoder_tokenizer(directory: Path, kind: str, **config: Any) -> Tokenizer:
    """tokenizer.json and tokenizer_config.json; `config` goes over the latter (`...` takes a key out)."""
    kind = {"Mistral": "Llama"}.get(kind, kind)
    tokenizer = bare_tokenizer(kind)
    first, last, name, tokens = _KINDS[kind]
    surround(tokenizer, first, last)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    write_json(directory / "tokenizer_config.json", {"tokenizer_class": name, "padding_side": "left", **tokens})
    edit_json(directory / "tokenizer_config.json", **config)
    return tokenizer
