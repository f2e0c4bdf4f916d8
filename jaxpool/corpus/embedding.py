"""Rows with their vectors: one stream of an engine over one stretch of chunks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from jaxpool.corpus.chunk import BadRow, Chunk
from jaxpool.corpus.report import Report
from jaxpool.corpus.stopping import Stop

if TYPE_CHECKING:
    from jaxpool.llm import LLM


@dataclass(frozen=True)
class Embedder:
    """A model with what is put before its texts.

    Attributes:
        llm: the model.
        prompt_name, prompt: as `LLM.embed_stream` takes them.
    """

    llm: LLM
    prompt_name: str | None = None
    prompt: str | None = None

    def __post_init__(self) -> None:
        self.stream(())  # wrong arguments are said at once

    def stream(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """`LLM.embed_stream`."""
        return self.llm.embed_stream(texts, prompt_name=self.prompt_name, prompt=self.prompt)

    @property
    def takes_empty(self) -> bool:
        """Whether an empty text has tokens: the prompt's, or with most models the special ones."""
        return self.llm.takes_empty(self.prompt_name, self.prompt)


@dataclass
class Stretch:
    """One stretch of rows, embedded by a stream of its own.

    Attributes:
        embedder: the model.
        chunks: its rows.
        rows: how many they are.
        report: where rows that are done are counted.
        stop: asked after each row.
        bad: the rows that were skipped so far.
    """

    embedder: Embedder
    chunks: Iterable[Chunk]
    rows: int
    report: Report
    stop: Stop | None = None
    bad: list[BadRow] = field(default_factory=list)

    def pairs(self) -> Generator[tuple[Chunk, np.ndarray], None, None]:
        """Each chunk that holds a text, with its vectors; see `with_vectors`.

        Raises:
            Preempted: as `Stop.check`.
        """
        return with_vectors(self._readable(), self._watched)

    def _readable(self) -> Iterator[Chunk]:
        for chunk in self.chunks:
            if chunk.bad:
                self.bad += chunk.bad
                self._done(len(chunk.bad))
            if chunk.texts:
                yield chunk

    def _watched(self, texts: Iterator[str]) -> Iterator[np.ndarray]:
        for vector in self.embedder.stream(texts):
            self._done(1)
            yield vector

    def _done(self, rows: int) -> None:
        self.rows -= rows
        self.report.add(rows)
        if self.stop is not None:
            self.stop.check(self.rows, self.report.rate)


def with_vectors(
    chunks: Iterable[Chunk], embed: Callable[[Iterator[str]], Iterator[np.ndarray]]
) -> Generator[tuple[Chunk, np.ndarray], None, None]:
    """Each chunk with its vectors.

    Args:
        chunks: of at least one text each; drawn from as far ahead as `embed` draws texts.
        embed: a stream of texts -> a stream of float32 [D] in the same order, which may lag behind.

    Yields:
        (chunk, float32 [n, D]).
    """
    waiting: deque[Chunk] = deque()

    def texts() -> Iterator[str]:
        for chunk in chunks:
            waiting.append(chunk)
            yield from chunk.texts

    vectors: list[np.ndarray] = []
    for vector in embed(texts()):
        vectors.append(vector)
        if len(vectors) == len(waiting[0].texts):
            yield waiting.popleft(), np.stack(vectors)
            vectors = []
