"""Texts of exactly so many tokens, as many as are wanted: words that are one token each."""

from __future__ import annotations

import random
from pathlib import Path

from tokenizers import Tokenizer


def texts(model: Path, tokens: int, count: int) -> list[str]:
    """`count` texts of `tokens` tokens, special ones included; the same ones every time."""
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    # Of word pieces those that are no word's end; by number, as the order of a vocabulary is a hash map's.
    pieces = sorted((number, piece) for piece, number in tokenizer.get_vocab().items())
    words = [piece for _, piece in pieces if piece.isascii() and piece.isalpha()]
    special = tokenizer.num_special_tokens_to_add(is_pair=False)
    draw = random.Random(tokens)
    return [" ".join(draw.choices(words, k=tokens - special)) for _ in range(count)]
