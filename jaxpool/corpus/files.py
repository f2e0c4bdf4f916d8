"""Several files as one corpus: their rows one behind the other, in the order of the files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jaxpool.corpus.chunk import Chunk
from jaxpool.corpus.reading import READERS, Corpus
from jaxpool.corpus.sources import expand


@dataclass(frozen=True)
class FilesSurvey:
    """What a first reading of all files found.

    Attributes:
        each: rows of each file.
        schema: the `pyarrow.Schema` that all files' columns go into, if asked for.
    """

    each: tuple[int, ...]
    schema: Any = None

    @property
    def rows(self) -> int:
        """Rows of all files."""
        return sum(self.each)


@dataclass(frozen=True)
class Files:
    """Files of texts, perhaps of several kinds. Attributes: the reader of each, and whether bad rows are skipped."""

    corpora: tuple[Corpus, ...]
    skip: bool = False

    @property
    def names(self) -> list[str]:
        """What the files are called."""
        return [corpus.source.name for corpus in self.corpora]

    def survey(self, *, columns: bool = False) -> FilesSurvey:
        """Reads all files. Arguments and errors as `Corpus.survey`."""
        each, schema = [], None
        for corpus in self.corpora:
            found = corpus.survey(schema, columns=columns, skip=self.skip)
            schema = found.schema
            each.append(found.rows)
        return FilesSurvey(tuple(each), schema)

    def chunks(self, survey: FilesSurvey, start: int = 0, *, empty: bool = True) -> Iterator[Chunk]:
        """The rows in order, with all columns where the survey has a schema.

        Args:
            survey: what was found.
            start: so many rows are left out at the start; files that hold no others are not opened.
            empty: whether a text may be empty; else its row is a bad one.

        Raises:
            ValueError: as `Corpus.chunks`, or a file that has other rows than the survey found.
        """
        for corpus, rows in zip(self.corpora, survey.each, strict=True):
            if start >= rows:
                start -= rows
                continue
            read = start
            for chunk in corpus.chunks(survey.schema, start=start, skip=self.skip):
                read += chunk.rows
                if not empty:
                    chunk = chunk.without_empty(corpus.source.name)
                    if chunk.bad and not self.skip:
                        raise chunk.bad[0].error()
                yield chunk
            if read != rows:
                raise ValueError(
                    f"{corpus.source.name}: changed while it was read: {rows:,} rows at first, now {read:,}"
                )
            start = 0


def open_files(inputs: Sequence[str | os.PathLike[str]], column: str = "text", *, skip: bool = False) -> Files:
    """The files that are meant. Arguments and errors as `sources.expand` and `reading.open_corpus`."""
    return Files(tuple(READERS[source.kind](source, column) for source in expand(inputs)), skip)
