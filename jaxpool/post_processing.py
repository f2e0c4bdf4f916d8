"""What a tokenizer puts round a text, or round and between the two of a pair; and how these two share a limit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Template:
    """The special tokens of one text or of a pair.

    Attributes:
        special: int32 arrays, one more than there are texts: before the first text, behind each.
        types: the token types in their order, where each text is one token.
        text_types: those of the texts alone.
    """

    special: tuple[np.ndarray, ...]
    types: tuple[int, ...]
    text_types: tuple[int, ...]

    @property
    def count(self) -> int:
        """How many special tokens there are."""
        return sum(map(len, self.special))

    def join(self, texts: Sequence[np.ndarray]) -> np.ndarray:
        """The texts' ids, int32 each, with the special tokens in their places."""
        return np.concatenate([self.special[0], *chain.from_iterable(zip(texts, self.special[1:], strict=True))])

    def second(self, lengths: Sequence[int]) -> int:
        """Tokens of type 1, which stand at the end, where the texts have these many tokens."""
        texts = sum(kind * (length - 1) for kind, length in zip(self.text_types, lengths, strict=True))
        return sum(self.types) + texts

    def check_types(self, name: str) -> None:
        """Refuses token types that `second` cannot tell; `name` is how the error calls the tokenizer.

        Raises:
            ValueError: types other than 0 and 1, or a 0 behind a 1.
        """
        if list(self.types) != sorted(self.types) or not {*self.types} <= {0, 1}:
            raise ValueError(f"{name}: a pair's token types are {self.types}, expected 0s, and then 1s up to the end")


_NOTHING = np.zeros(0, np.int32)
BARE = Template((_NOTHING, _NOTHING), (0,), (0,))
"""One text without special tokens."""


def probe_template(post_processor: Any, texts: int, name: str) -> Template:
    """Finds out what a post-processor makes of one text or of two.

    It is asked through a stand-in that knows two letters, one token each: a vocabulary need not hold any given text.

    Args:
        post_processor: one of `tokenizers.processors`, or None.
        texts: 1 or 2.
        name: how errors call the tokenizer.

    Raises:
        ValueError: the texts do not come each once and in their order.
    """
    from tokenizers import Tokenizer, models

    stand_in = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    if post_processor is not None:
        stand_in.post_processor = post_processor
    encoding = stand_in.encode(*"ab"[:texts])
    owners = encoding.sequence_ids
    places = [place for place, owner in enumerate(owners) if owner is not None]
    twice = sum(encoding.special_tokens_mask) + texts != len(owners)  # of a text's two places one has no owner
    if twice or [owners[place] for place in places] != list(range(texts)):
        raise ValueError(f"{name}: the post-processor makes {encoding.tokens} of {texts} texts, expected each once")
    gaps = list(zip([-1, *places], [*places, len(owners)], strict=True))
    return Template(
        special=tuple(np.asarray(encoding.ids[before + 1 : after], np.int32) for before, after in gaps),
        types=tuple(encoding.type_ids),
        text_types=tuple(encoding.type_ids[place] for place in places),
    )


def longest_first(first: int, second: int, budget: int) -> tuple[int, int]:
    """How many tokens of the two texts are kept, as the tokenizers library's "longest_first" has it.

    Args:
        first, second: tokens of the texts, special ones not counted.
        budget: most tokens of both together.
    """
    if first + second <= budget:
        return first, second
    short, long = min(first, second), budget - min(first, second)
    if long < short:  # the short one is too long as well: a half each, and the odd token to the longer
        short, long = budget // 2, budget - budget // 2
    return (long, short) if first > second else (short, long)
