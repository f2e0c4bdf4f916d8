"""Reading texts from .txt, .jsonl and .parquet files, some at a time, so that a file of any size will do."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Protocol

from jaxpool.corpus import arrow, chunk
from jaxpool.corpus.chunk import BadRow, Chunk
from jaxpool.corpus.sources import Source
from jaxpool.prompts import parse_text

# A parquet column is read in pieces of so many bytes; else that of a whole row group, which may be the whole file.
_IN_PIECES = {"buffer_size": 2**20, "pre_buffer": False}


@dataclass(frozen=True)
class Survey:
    """What a first reading of a whole file found.

    Attributes:
        rows: how many there are.
        schema: the `pyarrow.Schema` of all columns, if asked for.
    """

    rows: int
    schema: Any = None


class Corpus(Protocol):
    """A file of texts."""

    @property
    def source(self) -> Source:
        """The file."""
        ...

    def survey(self, schema: Any = None, *, columns: bool = False, skip: bool = False) -> Survey:
        """Reads the whole file, so that an error in its last row is found before anything is computed.

        Args:
            schema: of the files before, which this one's columns must go together with; None: there are none.
            columns: also find the schema of all columns.
            skip: pass over rows that cannot be read.

        Raises:
            ValueError: a row that holds no text, or that is broken; the file and the row are named.
            ImportError: pyarrow is needed and not installed.
        """
        ...

    def chunks(self, schema: Any = None, *, start: int = 0, skip: bool = False) -> Iterator[Chunk]:
        """The rows in order.

        Args:
            schema: read all columns as those of this schema (`Survey.schema`).
            start: so many rows are left out at the start of the file.
            skip: rows that cannot be read come as `Chunk.bad`, and are no error.

        Raises:
            ValueError, ImportError: as `survey`.
        """
        ...


def open_corpus(path: str | os.PathLike[str], column: str = "text") -> Corpus:
    """The reader for a file, by its suffix.

    Args:
        path: .txt: each line is a text, an empty one too. .jsonl: each line is an object with the text under
            the key `column`. Either may be compressed (.gz, .zst). .parquet: the text is in the column `column`.
        column: where the text is; for .txt, what its only column is called.

    Raises:
        ValueError: another suffix.
        FileNotFoundError: no such file.
        ImportError: a URL, and what it needs is not installed.
    """
    source = Source(os.fspath(path))
    source.check()
    return READERS[source.kind](source, column)


@dataclass(frozen=True)
class Lines:
    """A file with a text on each line.

    Attributes:
        source: the file.
        column: as `open_corpus` takes it.
        parse: (line, `column`) -> the row, or a ValueError that says why there is none.
    """

    source: Source
    column: str
    parse: Callable[[str, str], arrow.Row]

    def survey(self, schema: Any = None, *, columns: bool = False, skip: bool = False) -> Survey:
        """See `Corpus`. A column's type is one that fits all of its lines; a line that fits none is an error."""
        count = 0
        if columns:
            own = arrow.import_pyarrow().schema([(self.column, "string")])
            schema = arrow.unify(schema, own, self.source.name)
        for first, lines in self._lines(0):
            numbers, rows, bad = self._parsed(first, lines, skip)
            count += len(rows) + len(bad)
            if columns:
                schema = self._widened(schema, numbers, rows, skip)
        return Survey(count, schema if columns else None)

    def chunks(self, schema: Any = None, *, start: int = 0, skip: bool = False) -> Iterator[Chunk]:
        """See `Corpus`."""
        for first, lines in self._lines(start):
            numbers, rows, bad = self._parsed(first, lines, skip)
            batch = None
            if schema is not None:
                try:
                    batch = arrow.record_batch(rows, schema)
                except ValueError:  # of one row or several: the others are kept
                    fits = partial(_as_batch, schema=schema)
                    numbers, rows, more = self._sift(zip(numbers, rows, strict=True), fits, skip)
                    bad = sorted([*bad, *more], key=lambda row: row.row)
                    batch = arrow.record_batch(rows, schema)
            yield Chunk([row[self.column] for row in rows], batch, tuple(bad), first)

    def _parsed(self, first: int, lines: list[bytes], skip: bool) -> tuple[list[int], list[arrow.Row], list[BadRow]]:
        def parse(numbered: tuple[int, bytes]) -> arrow.Row:
            return self.parse(_decode(*numbered), self.column)

        numbers, rows, bad = self._sift(((n, (n, line)) for n, line in enumerate(lines, first)), parse, skip)
        return numbers, rows, bad

    def _sift(
        self, numbered: Iterable[tuple[int, Any]], read: Callable[[Any], arrow.Row], skip: bool
    ) -> tuple[list[int], list[arrow.Row], list[BadRow]]:
        """The rows that can be read with their numbers, and the bad ones; without `skip` those are errors."""
        numbers: list[int] = []
        rows: list[arrow.Row] = []
        bad: list[BadRow] = []
        for number, item in numbered:
            try:
                rows.append(read(item))
                numbers.append(number)
            except ValueError as error:
                bad.append(BadRow(self.source.name, number, str(error)))
                if not skip:
                    raise bad[-1].error() from error
        return numbers, rows, bad

    def _widened(self, schema: Any, numbers: list[int], rows: list[arrow.Row], skip: bool) -> Any:
        place = lambda row: f"{self.source.name}:{numbers[row]}"  # noqa: E731
        try:
            return arrow.widen(schema, rows, place)
        except ValueError:
            if not skip:
                raise
        for row in rows:
            with suppress(ValueError):  # it will be found not to fit again when it is read to be embedded
                schema = arrow.widen(schema, [row], place)
        return schema

    def _lines(self, start: int) -> Iterator[tuple[int, list[bytes]]]:
        """Some lines at a time: the number of the first, from 1, and the lines."""
        with self.source.unpacked() as file:
            for _ in islice(file, start):
                pass
            first = start + 1
            while some := list(islice(file, chunk.CHUNK)):
                yield first, some
                first += len(some)


def _decode(number: int, line: bytes) -> str:
    try:
        # Some editors put a byte order mark at the start.
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not valid UTF-8 (byte {line[error.start]:#04x} at {error.start})") from error
    return text.removesuffix("\n").removesuffix("\r")


def _parse_plain(line: str, column: str) -> arrow.Row:
    return {column: line}


def _parse_json(line: str, column: str) -> arrow.Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, got {line.strip():.60}")
    if column not in row:
        raise ValueError(f"no column {column!r}, only {list(row)}; --column names another")
    parse_text(row[column], f"column {column!r}")
    return row


def _as_batch(row: arrow.Row, schema: Any) -> arrow.Row:
    arrow.record_batch([row], schema)
    return row


@dataclass(frozen=True)
class Parquet:
    """A .parquet file. Attributes: the file, and the column as `open_corpus` takes it."""

    source: Source
    column: str

    def survey(self, schema: Any = None, *, columns: bool = False, skip: bool = False) -> Survey:
        """See `Corpus`."""
        rows = sum(chunk.rows for chunk in self.chunks(skip=skip))
        if not columns:
            return Survey(rows)
        with self._open() as file:
            return Survey(rows, arrow.unify(schema, file.schema_arrow, self.source.name))

    def chunks(self, schema: Any = None, *, start: int = 0, skip: bool = False) -> Iterator[Chunk]:
        """See `Corpus`."""
        with self._open() as file:
            groups, before = _groups(file.metadata, start)
            first, late = before + 1, start - before
            columns = [self.column] if schema is None else None
            batches = file.iter_batches(chunk.CHUNK, row_groups=groups, columns=columns)
            with closing(batches):
                for batch in batches:
                    passed = min(late, batch.num_rows)
                    late -= passed
                    first += passed
                    if batch.num_rows > passed:
                        yield self._chunk(batch.slice(passed), first, schema, skip)
                        first += batch.num_rows - passed

    def _chunk(self, batch: Any, first: int, schema: Any, skip: bool) -> Chunk:
        texts, bad = self._texts(batch.column(self.column), first)
        if bad and not skip:
            raise bad[0].error()
        if bad:
            wrong = {row.row - first for row in bad}
            batch = arrow.take(batch, [i for i in range(batch.num_rows) if i not in wrong])
        try:
            columns = None if schema is None else arrow.conform(batch, schema)
        except ValueError as error:
            raise ValueError(f"{self.source.name}: rows {first} … {first + batch.num_rows - 1}: {error}") from error
        return Chunk(texts, columns, tuple(bad), first)

    def _texts(self, column: Any, first: int) -> tuple[list[str], list[BadRow]]:
        try:
            texts = column.to_pylist()
        except UnicodeDecodeError:
            texts = [_text(value) for value in column]
        reasons = {None: f"column {self.column!r} is null", b"": f"column {self.column!r} is not valid UTF-8"}
        bad = [
            BadRow(self.source.name, number, reasons[text])
            for number, text in enumerate(texts, first)
            if not isinstance(text, str)
        ]
        return [text for text in texts if isinstance(text, str)], bad

    @contextmanager
    def _open(self) -> Iterator[Any]:
        pa = arrow.import_pyarrow()
        with self.source.open() as raw:
            try:
                with pa.parquet.ParquetFile(raw, **_IN_PIECES) as file:
                    self._check(pa, file.schema_arrow)
                    yield file
            except (pa.ArrowException, OSError) as error:
                if getattr(error, "errno", None) is not None:  # the disk's or the network's, not the content's
                    raise
                raise ValueError(f"{self.source.name}: not a whole .parquet file: {error}") from error

    def _check(self, pa: Any, schema: Any) -> None:
        if schema.names.count(self.column) != 1:
            raise ValueError(
                f"{self.source.name}: expected one column {self.column!r}, the columns are {schema.names}; "
                "--column names another"
            )
        kind = schema.field(self.column).type
        values = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not any(test(values) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
            raise ValueError(f"{self.source.name}: column {self.column!r} is of type {kind}, expected string")


def _groups(metadata: Any, start: int) -> tuple[list[int], int]:
    """The row groups that hold row `start` and those behind it, and how many rows are before them."""
    before = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if before + rows > start:
            return list(range(group, metadata.num_row_groups)), before
        before += rows
    return [], before


def _text(value: Any) -> str | bytes | None:
    # A scalar whose bytes are no UTF-8 is known by b"".
    try:
        return value.as_py()
    except UnicodeDecodeError:
        return b""


READERS: dict[str, Callable[[Source, str], Corpus]] = {
    ".txt": lambda source, column: Lines(source, column, _parse_plain),
    ".jsonl": lambda source, column: Lines(source, column, _parse_json),
    ".parquet": Parquet,
}
