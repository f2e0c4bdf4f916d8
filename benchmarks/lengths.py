"""Texts of chosen lengths, cut and joined from docstrings: what a search engine's queries and passages are like."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer

from benchmarks.corpus import docstrings


class Length(NamedTuple):
    """A kind of text: how many tokens the i-th has, special ones included, and how many texts there are."""

    tokens: Callable[[int], int]
    texts: int


# About 40,000 tokens each. The mixed ones spread as real texts do: many short, few long, 72 on average.
_SPREAD = (12, 18, 24, 28, 34, 40, 48, 56, 64, 76, 92, 112, 140, 256, 80)
LENGTHS = {
    "short": Length(lambda i: 8 + 4 * i % 15, 2400),
    "mixed": Length(lambda i: _SPREAD[4 * i % 15], 570),
    "passages": Length(lambda i: 244 + 5 * i % 13, 160),
    "512": Length(lambda i: 512, 80),
}


def texts(name: str, model: Path) -> tuple[list[str], list[int]]:
    """The texts of a length, shuffled so that any first few are like all, and how many tokens each has."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    length, words = LENGTHS[name], _words(tokenizer)
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    made = [_take(words, length.tokens(i) - special) for i in range(length.texts)]
    random.Random(0).shuffle(made)
    return made, [len(encoding.ids) for encoding in tokenizer.encode_batch(made)]


_docstrings = cache(docstrings)


def _words(tokenizer: Tokenizer) -> Iterator[tuple[str, int]]:
    """The docstrings' words without end, each with its number of tokens."""
    known: dict[str, int] = {}
    while True:
        for docstring in _docstrings():
            for word in docstring.split():
                if word not in known:
                    known[word] = len(tokenizer.encode(word, add_special_tokens=False).ids)
                yield word, known[word]


def _take(words: Iterator[tuple[str, int]], tokens: int) -> str:
    """The next words, until there are `tokens`; one that does not fit any more is passed over."""
    taken: list[str] = []
    while tokens > 0:
        word, size = next(words)
        if size <= tokens:
            taken.append(word)
            tokens -= size
    return " ".join(taken)
