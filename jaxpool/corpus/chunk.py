"""Consecutive rows of an input: those that hold a text, and those that could not be read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from jaxpool.corpus import arrow

# Rows read at a time.
CHUNK = 1024


@dataclass(frozen=True)
class BadRow:
    """A row that holds no text to embed.

    Attributes:
        input: the file, by its source's name.
        row: its number there, from 1.
        reason: what is wrong with it.
    """

    input: str
    row: int
    reason: str

    def error(self) -> ValueError:
        """For those who do not skip it."""
        return ValueError(f"{self.input}:{self.row}: {self.reason}")

    def as_json(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows, at least one.

    Attributes:
        texts: of the rows that can be read.
        columns: all columns of those rows as a `pyarrow.RecordBatch`, if asked for.
        bad: the rows that cannot, in order.
        first: the first row's number in its file, from 1.
    """

    texts: list[str]
    columns: Any = None
    bad: tuple[BadRow, ...] = ()
    first: int = 1

    @property
    def rows(self) -> int:
        """How many rows of the input it stands for."""
        return len(self.texts) + len(self.bad)

    def split(self, rows: int) -> tuple[Chunk, Chunk]:
        """The first `rows` of its rows, and the others."""
        border = self.first + rows
        before = tuple(bad for bad in self.bad if bad.row < border)
        kept = rows - len(before)
        columns = (None, None) if self.columns is None else (self.columns.slice(0, kept), self.columns.slice(kept))
        return (
            Chunk(self.texts[:kept], columns[0], before, self.first),
            Chunk(self.texts[kept:], columns[1], self.bad[len(before) :], border),
        )

    def without_empty(self, input: str) -> Chunk:
        """The chunk with its empty texts among the bad rows, for a model that makes no token of them."""
        if "" not in self.texts:
            return self
        known = {bad.row for bad in self.bad}
        numbers = [row for row in range(self.first, self.first + self.rows) if row not in known]
        reason = "the text is empty, and this model's tokenizer adds no token"
        empty = [BadRow(input, row, reason) for row, text in zip(numbers, self.texts, strict=True) if not text]
        kept = [i for i, text in enumerate(self.texts) if text]
        columns = None if self.columns is None else arrow.take(self.columns, kept)
        bad = tuple(sorted([*self.bad, *empty], key=lambda bad: bad.row))
        return Chunk([self.texts[i] for i in kept], columns, bad, self.first)


class Feed:
    """Chunks dealt out by rows. What one `take` gives does not depend on how the rows came.

    That matters: a run that was resumed in the middle of a file must write what an uninterrupted one writes, and
    how a writer cuts its pages depends on the chunks that it is given.

    Args:
        chunks: where the rows come from.
    """

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self._chunks = iter(chunks)
        self._rest: deque[Chunk] = deque()

    def take(self, rows: int) -> Iterator[Chunk]:
        """The next `rows` rows, fewer at the end, in chunks of `CHUNK` rows."""
        while rows and (parts := self._next(min(rows, CHUNK))):
            chunk = _join(parts)
            rows -= chunk.rows
            yield chunk

    def _next(self, rows: int) -> list[Chunk]:
        parts: list[Chunk] = []
        while rows:
            chunk = self._rest.popleft() if self._rest else next(self._chunks, None)
            if chunk is None:
                break
            if chunk.rows > rows:
                chunk, rest = chunk.split(rows)
                self._rest.append(rest)
            parts.append(chunk)
            rows -= chunk.rows
        return parts


def _join(parts: Sequence[Chunk]) -> Chunk:
    """Chunks that follow each other, perhaps from one file to the next, as one that is not split any more."""
    columns = [part.columns for part in parts if part.columns is not None]
    return Chunk(
        [text for part in parts for text in part.texts],
        arrow.concatenate(columns) if columns else None,
        tuple(bad for part in parts for bad in part.bad),
        parts[0].first,
    )
