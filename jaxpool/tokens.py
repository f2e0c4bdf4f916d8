"""Texts -> token ids, with the checkpoint's own Rust tokenizer. Never mutated after loading, so threads share it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxpool.converters.checkpoint import read_json

# A text longer than this many characters a token is cut before tokenising (see `_encode_long`).
_CHARS_PER_TOKEN = 16
# Tokens next to a cut may differ from the whole text's, so this many are thrown away. A cut inside a word touches
# that word only: what is [UNK] as a whole may be cut to a word of up to 100 pieces (WordPiece takes no longer one).
_MARGIN = 128

# tokenizer_config.json's settings, each with its default, that transformers' tokenizers of BERT's kind put over
# tokenizer.json's normaliser; the classes that say "as in tokenizer.json" do not.
_BERT_NORMALIZER = {
    "do_lower_case": ("lowercase", True),
    "strip_accents": ("strip_accents", None),
    "tokenize_chinese_chars": ("handle_chinese_chars", True),
}
_AS_STORED = ("PreTrainedTokenizerFast", "TokenizersBackend")

# The class that transformers takes for a config.json's model_type: whatever tokenizer_config.json names, …
_ALWAYS = {"mistral": "TokenizersBackend", "qwen2": "Qwen2Tokenizer"}
# … or where it names none. (Its `add_bos_token` and `add_eos_token` have no say beside a tokenizer.json.)
_UNNAMED = dict.fromkeys(("gemma", "gemma2", "gemma3_text"), "GemmaTokenizer") | {"qwen3": "Qwen2Tokenizer"}


@dataclass(frozen=True)
class Encoded:
    """A tokenised text.

    Attributes:
        ids: int32 [length], special tokens included.
        total: tokens of the whole text; a lower bound where it was cut before tokenising.
    """

    ids: np.ndarray
    total: int

    @property
    def truncated(self) -> bool:
        """Whether `ids` is not the whole text."""
        return self.total > len(self.ids)


class Tokenizer:
    """A checkpoint's tokenizer.

    Args:
        backend: the `tokenizers.Tokenizer`, with truncation and padding off.
        truncation_side: "right" cuts the end of a text that is too long, "left" its beginning.
    """

    def __init__(self, backend: Any, truncation_side: str = "right") -> None:
        self._backend = backend
        self._truncation_side = truncation_side
        probe = backend.encode("a")
        special = probe.special_tokens_mask
        self._prefix = next((i for i, s in enumerate(special) if not s), 0)
        self._suffix = next((i for i, s in enumerate(reversed(special)) if not s), 0)
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary, added ones included."""
        return self._backend.get_vocab_size()

    @property
    def special_count(self) -> int:
        """Special tokens put round a text."""
        return self._prefix + self._suffix

    def encode(self, texts: Sequence[str], limit: int) -> list[Encoded]:
        """Tokenises texts, each cut at `limit` tokens (special ones included and kept).

        Args:
            texts: any number of texts of any length; a text of a million characters costs milliseconds.
            limit: most tokens to keep of each.
        """
        threshold = (limit + _MARGIN) * _CHARS_PER_TOKEN
        short = [text for text in texts if len(text) <= threshold]
        whole = iter(self._backend.encode_batch_fast(short) if short else ())
        return [
            self._cut(next(whole).ids, limit) if len(text) <= threshold else self._encode_long(text, limit, threshold)
            for text in texts
        ]

    def _encode_long(self, text: str, limit: int, chars: int) -> Encoded:
        """Tokenises only as much of a huge text as is needed for the same kept ids.

        The text is cut before a blank, where no pre-tokenizer joins what is on the two sides; a margin of
        tokens in front of the cut is not trusted. Too few tokens: four times the text.
        """
        while chars < len(text):
            if self._truncation_side == "left":
                blank = text.find(" ", len(text) - chars, len(text) - chars // 2)
                part = text[blank if blank >= 0 else len(text) - chars :]
            else:
                blank = text.rfind(" ", chars // 2, chars)
                part = text[: blank if blank > 0 else chars]
            ids = self._backend.encode_batch_fast([part])[0].ids
            if len(ids) >= limit + _MARGIN:
                return self._cut(ids, limit)
            chars *= 4
        return self._cut(self._backend.encode_batch_fast([text])[0].ids, limit)

    def _cut(self, ids: list[int], limit: int) -> Encoded:
        total = len(ids)
        array = np.asarray(ids, np.int32)
        if total > limit:
            first, last = self._prefix, total - self._suffix
            content = self.cut_ids(array[first:last], max(limit - self.special_count, 0))
            array = np.concatenate([array[:first], content, array[last:]])[:limit]
        return Encoded(array, total)

    def cut_ids(self, ids: np.ndarray, limit: int) -> np.ndarray:
        """The `limit` ids that the tokenizer's truncation side keeps."""
        return ids[-limit:] if self._truncation_side == "left" and limit else ids[:limit]

    def prompt_length(self, prompt: str) -> int:
        """Tokens of a prompt, a closing special token left out, as sentence-transformers counts them."""
        ids = self._backend.encode(prompt).ids
        return len(ids) - (1 if ids and ids[-1] in self.special_ids else 0)


def load_tokenizer(directory: Path, *, lower_case: bool = False) -> Tokenizer:
    """Loads the tokenizer of a model directory.

    tokenizer.json is read as it is (importing transformers costs seconds), with what transformers would change
    in it: truncation and padding off, tokenizer_config.json's say over a BERT normaliser, and what some decoders'
    tokenizers put in place of the stored normaliser and pre-tokenizer.

    Args:
        directory: with tokenizer.json, or whatever transformers can make a fast tokenizer from.
        lower_case: sentence-transformers' `do_lower_case`.

    Raises:
        ValueError: no tokenizer in the directory, or one that has no fast form.
    """
    from tokenizers import Tokenizer as Backend

    file = directory / "tokenizer.json"
    if file.exists():
        try:
            backend = Backend.from_file(str(file))
        except Exception as error:  # tokenizers raises the bare class
            raise ValueError(f"{file} is not a valid tokenizer: {error}") from error
        _apply_tokenizer_config(backend, directory)
    else:
        backend = _from_transformers(directory)
    backend.no_truncation()
    backend.no_padding()
    if lower_case:
        _prepend_lower_case(backend)
    return Tokenizer(backend, _truncation_side(directory / "tokenizer_config.json"))


def _apply_tokenizer_config(backend: Any, directory: Path) -> None:
    from tokenizers.normalizers import BertNormalizer

    config, model = (_read_object(directory / name) for name in ("tokenizer_config.json", "config.json"))
    if isinstance(backend.normalizer, BertNormalizer) and config.get("tokenizer_class") not in _AS_STORED:
        for key, (attribute, default) in _BERT_NORMALIZER.items():
            setattr(backend.normalizer, attribute, default if config.get(key) is None else config[key])
    kind = str(model.get("model_type"))
    named = config.get("tokenizer_class") or model.get("tokenizer_class") or _UNNAMED.get(kind, "")
    if rebuild := _REBUILT.get(_ALWAYS.get(kind, named).removesuffix("Fast")):
        rebuild(backend, config)


def _read_object(file: Path) -> dict[str, Any]:
    return read_json(file) if file.exists() else {}


def _as_llama(backend: Any, config: dict[str, Any]) -> None:
    """Blanks become "▁" in the pre-tokenizer, which knows where a text begins; Llama 2's stored normaliser did not."""
    from tokenizers.pre_tokenizers import Metaspace

    if "ByteLevel" in f"{backend.pre_tokenizer} {backend.decoder}":
        return  # Llama 3 under the name of Llama 2's class
    scheme = "always" if config.get("legacy") else "first"
    if config.get("add_prefix_space") is False:
        scheme = "never"
    backend.normalizer = None
    backend.pre_tokenizer = Metaspace(prepend_scheme=scheme, split=False)


def _as_gemma(backend: Any, config: dict[str, Any]) -> None:
    from tokenizers.normalizers import Replace
    from tokenizers.pre_tokenizers import Split

    backend.normalizer = Replace(" ", "▁")
    backend.pre_tokenizer = Split(" ", "merged_with_previous")


def _as_qwen2(backend: Any, config: dict[str, Any]) -> None:
    from tokenizers import Regex
    from tokenizers.normalizers import NFC
    from tokenizers.pre_tokenizers import ByteLevel, Split
    from tokenizers.pre_tokenizers import Sequence as Chain

    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    spell = ByteLevel(add_prefix_space=bool(config.get("add_prefix_space")), use_regex=False)
    backend.normalizer = NFC()
    backend.pre_tokenizer = Chain([Split(Regex(words), "isolated"), spell])


# What these classes of transformers put in the stored normaliser's and pre-tokenizer's place.
_REBUILT: Mapping[str, Callable[[Any, dict[str, Any]], None]] = {
    "LlamaTokenizer": _as_llama,
    "GemmaTokenizer": _as_gemma,
    "Qwen2Tokenizer": _as_qwen2,
}


def _truncation_side(file: Path) -> str:
    config = read_json(file) if file.exists() else {}
    side = config.get("truncation_side") or "right"
    if side not in ("left", "right"):
        raise ValueError(f"{file}: `truncation_side` is {side!r}, expected 'left' or 'right'")
    return side


def _prepend_lower_case(backend: Any) -> None:
    from tokenizers.normalizers import Lowercase
    from tokenizers.normalizers import Sequence as Chain

    rest = [backend.normalizer] if backend.normalizer is not None else []
    backend.normalizer = Chain([Lowercase(), *rest])


def _from_transformers(directory: Path) -> Any:
    with _quiet_import():
        from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False).backend_tokenizer
    except Exception as error:  # transformers raises many kinds
        raise ValueError(f"{directory} holds no tokenizer that loads without its own code: {error}") from error


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Keeps transformers' "PyTorch was not found" line, of no concern to jaxpool's users, off the terminal."""
    hush = logging.Filter("nobody")
    hush.filter = lambda record: "PyTorch was not found" not in record.getMessage()  # type: ignore[method-assign]
    target = logging.getLogger("transformers")
    target.addFilter(hush)
    try:
        yield
    finally:
        target.removeFilter(hush)
