"""Texts -> token ids, with the checkpoint's own Rust tokenizer. Never mutated after loading, so threads share it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxpool.post_processing import BARE, Template, longest_first, probe_template
from jaxpool.tokenizer_files import read_chat_template, read_tokenizer

# A text longer than this many characters a token is cut before tokenising (see `_parts`).
_CHARS_PER_TOKEN = 16
# Tokens next to a cut may differ from the whole text's, so this many are thrown away. A cut inside a word touches
# that word only: what is [UNK] as a whole may be cut to a word of up to 100 pieces (WordPiece takes no longer one).
_MARGIN = 128


@dataclass(frozen=True)
class Encoded:
    """A tokenised text, or pair of texts.

    Attributes:
        ids: int32 [length], special tokens included.
        total: tokens of the whole text or pair; a lower bound where a text was cut before tokenising.
        second: tokens at the end that have token type 1 (a pair's second text); 0 where there are no token types.
    """

    ids: np.ndarray
    total: int
    second: int = 0

    @property
    def truncated(self) -> bool:
        """Whether `ids` is not the whole text."""
        return self.total > len(self.ids)


@dataclass(frozen=True)
class _Content:
    """A text's int32 ids without special tokens; of a text that is not `whole`, more than enough at the kept end."""

    ids: np.ndarray
    whole: bool


class Tokenizer:
    """A checkpoint's tokenizer.

    Args:
        backend: the `tokenizers.Tokenizer`, with truncation and padding off.
        truncation_side: "right" cuts the end of a text that is too long, "left" its beginning.
        token_types: whether pairs are told apart by token types.
        special_tokens: the texts of the special tokens that the checkpoint names ("pad_token", "bos_token", …).
        directory: where the tokenizer comes from, for its chat template and for errors.
    """

    def __init__(
        self,
        backend: Any,
        truncation_side: str = "right",
        *,
        token_types: bool = True,
        special_tokens: Mapping[str, str] = MappingProxyType({}),
        directory: Path | None = None,
    ) -> None:
        self._backend = backend
        self._truncation_side = truncation_side
        self._token_types = token_types
        self.special_tokens = special_tokens
        self._directory = directory
        self._single = probe_template(backend.post_processor, 1, self._name)
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary, added ones included."""
        return self._backend.get_vocab_size()

    @property
    def special_count(self) -> int:
        """Special tokens put round a text."""
        return self._single.count

    @property
    def pair_special_count(self) -> int:
        """Special tokens put round and between the texts of a pair."""
        return self._pair.count

    @property
    def pad_id(self) -> int | None:
        """The padding token's id; None where the checkpoint names none."""
        return self.token_id(self.special_tokens["pad_token"]) if "pad_token" in self.special_tokens else None

    @cached_property
    def chat_template(self) -> str | None:
        """The checkpoint's chat template (Jinja), if it has one."""
        return None if self._directory is None else read_chat_template(self._directory)

    def token_id(self, token: str) -> int | None:
        """The id of a token, an added one too; None for what the vocabulary does not hold."""
        return self._backend.token_to_id(token)

    def encode(
        self,
        texts: Sequence[str],
        limit: int,
        *,
        special_tokens: bool = True,
        truncation_side: str | None = None,
    ) -> list[Encoded]:
        """Tokenises texts, each cut at `limit` tokens (special ones included and kept).

        Args:
            texts: any number of texts of any length; a text of a million characters costs milliseconds.
            limit: most tokens to keep of each.
            special_tokens: whether special tokens are put round each text.
            truncation_side: "left" or "right"; None for the checkpoint's own.

        Raises:
            ValueError: no such side.
        """
        side = self._side(truncation_side)
        template = self._single if special_tokens else BARE
        return [_single(content, template, limit, side) for content in self._contents(texts, limit, side)]

    def encode_pairs(
        self, pairs: Sequence[tuple[str, str]], limit: int, *, truncation_side: str | None = None
    ) -> list[Encoded]:
        """Tokenises pairs as transformers' `tokenizer(text, text_pair, truncation=True, max_length=limit)` does.

        The longer text is cut first. Every distinct text is tokenised once, however many pairs it is in. A pair
        whose second text is empty stays a pair, as where transformers gets a whole batch of pairs.

        Args:
            pairs: any number of pairs.
            limit: most tokens to keep of each pair, special ones included.
            truncation_side: "left" or "right"; None for the checkpoint's own.

        Raises:
            ValueError: no such side, or a tokenizer whose pairs this class cannot put together.
        """
        side = self._side(truncation_side)
        budget = max(limit - self._pair.count, 0)
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        contents = dict(zip(texts, self._contents(texts, limit, side), strict=True))
        encoded = []
        for pair in pairs:
            two = [contents[text] for text in pair]
            # Of two texts that are both too long the longer one gets the odd token: the one case for true lengths.
            if budget % 2 and all(len(content.ids) > budget for content in two):
                contents |= {text: self._whole([text])[0] for text in pair if not contents[text].whole}
                two = [contents[text] for text in pair]
            encoded.append(self._join(two, limit, side))
        return encoded

    def cut_text(self, text: str, tokens: int, *, truncation_side: str | None = None) -> str:
        """The longest beginning of a text that ends where a token does and has at most so many tokens.

        With truncation side "left": the longest end, which begins where a token does. Special tokens are not counted.

        Args:
            text: of any length.
            tokens: most tokens of what is left; 0 leaves "".
            truncation_side: "left" or "right"; None for the checkpoint's own.

        Raises:
            ValueError: no such side.
        """
        side = self._side(truncation_side)
        if tokens <= 0:
            return ""
        for part in _parts(text, tokens, side):
            encoding = self._backend.encode(part, add_special_tokens=False)
            if _enough(len(encoding), tokens):
                break
        else:
            if len(encoding) <= tokens:
                return text
        # A character of several tokens is not to be cut, and the end of a word may be more tokens than it was within
        # the word: what a cut leaves is counted again.
        kept = encoding.offsets[-tokens:] if side == "left" else encoding.offsets[tokens - 1 :: -1]
        cuts = (part[first:] if side == "left" else part[:last] for first, last in kept)
        return next((cut for cut in cuts if len(self._whole([cut])[0].ids) <= tokens), "")

    def cut_ids(self, ids: np.ndarray, limit: int, truncation_side: str | None = None) -> np.ndarray:
        """The `limit` ids that a truncation side ("left", "right"; None: the checkpoint's own) keeps."""
        return _cut(ids, limit, self._side(truncation_side))

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The vocabulary's words for ids."""
        return [self._backend.id_to_token(i) for i in ids]

    def places(self, text: str, *, special_tokens: bool = True) -> Iterator[tuple[int, str, tuple[int, int] | None]]:
        """A whole text's tokens: id, the vocabulary's word, and its first and last character; None if it is special."""
        encoding = self._backend.encode(text, add_special_tokens=special_tokens)
        columns = (encoding.ids, encoding.tokens, encoding.offsets, encoding.special_tokens_mask)
        for i, token, place, added in zip(*columns, strict=True):
            yield i, token, None if added else place

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included."""
        return self._backend.decode(list(ids), skip_special_tokens=False)

    def prompt_length(self, prompt: str) -> int:
        """Tokens of a prompt, a closing special token left out, as sentence-transformers counts them."""
        ids = self._backend.encode(prompt).ids
        return len(ids) - (1 if ids and ids[-1] in self.special_ids else 0)

    @property
    def _name(self) -> str:
        return "the tokenizer" if self._directory is None else str(self._directory / "tokenizer.json")

    @cached_property
    def _pair(self) -> Template:
        template = probe_template(self._backend.post_processor, 2, self._name)
        if self._token_types:
            template.check_types(self._name)
        return template

    def _join(self, two: Sequence[_Content], limit: int, side: str) -> Encoded:
        first, second = (content.ids for content in two)
        keep = longest_first(len(first), len(second), max(limit - self._pair.count, 0))
        ids = self._pair.join([_cut(first, keep[0], side), _cut(second, keep[1], side)])
        ones = self._pair.second(keep) if self._token_types else 0
        over = max(len(ids) - limit, 0)  # special tokens that a tiny limit has no room for
        return Encoded(ids[:limit], self._pair.count + len(first) + len(second), max(ones - over, 0))

    def _side(self, truncation_side: str | None) -> str:
        if truncation_side not in (None, "left", "right"):
            raise ValueError(f"truncation_side is {truncation_side!r}, expected 'left', 'right' or None")
        return truncation_side or self._truncation_side

    def _contents(self, texts: Sequence[str], limit: int, side: str) -> list[_Content]:
        """Tokenises what it takes to keep up to `limit` tokens at one side of each text."""
        short = [len(text) <= _threshold(limit) for text in texts]
        whole = iter(self._whole([text for text, is_short in zip(texts, short, strict=True) if is_short]))
        return [
            next(whole) if is_short else self._content(text, limit, side)
            for text, is_short in zip(texts, short, strict=True)
        ]

    def _content(self, text: str, limit: int, side: str) -> _Content:
        for part in _parts(text, limit, side):
            (content,) = self._whole([part])
            if _enough(len(content.ids), limit):
                return _Content(content.ids, whole=len(part) == len(text))
        return content

    def _whole(self, texts: list[str]) -> list[_Content]:
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False) if texts else ()
        return [_Content(np.asarray(encoding.ids, np.int32), whole=True) for encoding in encodings]


def load_tokenizer(directory: Path, *, lower_case: bool = False) -> Tokenizer:
    """Loads the tokenizer of a model directory, as transformers would have it (see `tokenizer_files`).

    Args:
        directory: with tokenizer.json, or whatever transformers can make a fast tokenizer from.
        lower_case: sentence-transformers' `do_lower_case`.

    Raises:
        ValueError: no tokenizer in the directory, or one that has no fast form.
    """
    stored = read_tokenizer(directory, lower_case=lower_case)
    return Tokenizer(
        stored.backend,
        stored.truncation_side,
        token_types=stored.token_types,
        special_tokens=stored.special_tokens,
        directory=directory,
    )


def _single(content: _Content, template: Template, limit: int, side: str) -> Encoded:
    kept = _cut(content.ids, max(limit - template.count, 0), side)
    return Encoded(template.join([kept])[:limit], template.count + len(content.ids))


def _cut(ids: np.ndarray, limit: int, side: str) -> np.ndarray:
    return ids[-limit:] if side == "left" and limit else ids[:limit]


def _threshold(limit: int) -> int:
    return (limit + _MARGIN) * _CHARS_PER_TOKEN


def _enough(tokens: int, limit: int) -> bool:
    """Whether a part of a text has so many tokens that the `limit` ones at the kept end are the whole text's."""
    return tokens >= limit + _MARGIN


def _parts(text: str, limit: int, side: str) -> Iterator[str]:
    """Ever longer parts of a huge text at the end that is kept, each four times the one before; the last is all of it.

    The text is cut before a blank, where no pre-tokenizer joins what is on the two sides; a margin of tokens next to
    the cut is not to be trusted.
    """
    chars = _threshold(limit)
    while chars < len(text):
        if side == "left":
            blank = text.find(" ", len(text) - chars, len(text) - chars // 2)
            yield text[blank if blank >= 0 else len(text) - chars :]
        else:
            blank = text.rfind(" ", chars // 2, chars)
            yield text[: blank if blank > 0 else chars]
        chars *= 4
    yield text
