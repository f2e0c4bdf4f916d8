"""A SentencePiece `tokenizer.model` file: its pieces, and how it was trained to cut texts into them.

The file is one protobuf message of a schema that only ever gains fields (`sentencepiece_model.proto`), and few of
them matter here; a reader of the wire format is less than the two packages that would else be needed
(sentencepiece itself does not say which pieces are user-defined, nor what its normaliser is set to).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

_MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_FIXED = {1: 8, 5: 4}  # wire types of a fixed number of bytes


class Kind(IntEnum):
    """What a piece is for."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Piece(NamedTuple):
    """One entry of the vocabulary; its place is its id."""

    text: str
    score: float
    kind: Kind


@dataclass(frozen=True)
class SentencePieceFile:
    """What a `tokenizer.model` says.

    Attributes:
        pieces: the vocabulary.
        model_type: "bpe" or "unigram".
        byte_fallback: whether a character that no piece has becomes the pieces of its bytes.
        charsmap: the compiled table of the normaliser; empty for none.
        add_dummy_prefix: whether a text gets a blank in front.
        remove_extra_whitespaces: whether blanks at both ends, and all but one of several, are dropped.
    """

    pieces: tuple[Piece, ...]
    model_type: str
    byte_fallback: bool
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool

    def texts(self, *kinds: Kind) -> list[str]:
        """The pieces of these kinds, in order of their ids."""
        return [piece.text for piece in self.pieces if piece.kind in kinds]


def read_sentencepiece(file: Path) -> SentencePieceFile:
    """Reads a `tokenizer.model`.

    Raises:
        ValueError: it is no SentencePiece model, or one that is neither BPE nor Unigram; the file is named.
    """
    try:
        return _read(file.read_bytes())
    except (ValueError, IndexError, TypeError, struct.error) as error:
        raise ValueError(f"{file} is not a SentencePiece model that is understood: {error}") from error


def _read(data: bytes) -> SentencePieceFile:
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normaliser: dict[int, Any] = {}
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_piece(value))
        elif number == 2:
            trainer |= dict(_fields(value))
        elif number == 3:
            normaliser |= dict(_fields(value))
    model_type = _MODEL_TYPES.get(trainer.get(3, 1), "unknown")
    if model_type not in ("bpe", "unigram"):
        raise ValueError(f"its model type is {model_type!r}, expected 'bpe' or 'unigram'")
    if trainer.get(24, False) or not normaliser.get(5, True):
        raise ValueError("it does not put '▁' in place of blanks, in front of words")
    if (unknown := sum(piece.kind == Kind.UNKNOWN for piece in pieces)) != 1:
        raise ValueError(f"it has {unknown} pieces for what is unknown, expected one")
    return SentencePieceFile(
        pieces=tuple(pieces),
        model_type=model_type,
        byte_fallback=bool(trainer.get(35, False)),
        charsmap=normaliser.get(2, b""),
        add_dummy_prefix=bool(normaliser.get(3, True)),
        remove_extra_whitespaces=bool(normaliser.get(4, True)),
    )


def _piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    if not fields.get(1):
        raise ValueError("a piece without text")
    (score,) = struct.unpack("<f", fields.get(2, bytes(4)))
    return Piece(str(fields[1], "utf-8"), score, Kind(fields.get(3, Kind.NORMAL)))


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of a message's fields: int where the wire holds a varint, else bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire_type == 2:
            size, at = _varint(data, at)
        elif wire_type in _FIXED:
            size = _FIXED[wire_type]
        else:
            raise ValueError(f"wire type {wire_type} at byte {at}")
        if at + size > len(data):
            raise ValueError(f"a field of {size} bytes at byte {at} of {len(data)}")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, lowest first, and the place behind it."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError(f"an endless number at byte {at}")
