"""Reading texts from .txt, .jsonl and .parquet files, some at a time, so that a file of any size will do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from jaxpool.corpus import arrow
from jaxpool.prompts import parse_text

# Texts read at a time.
CHUNK = 1024


@dataclass(frozen=True)
class Chunk:
    """Consecutive texts of a file, at least one.

    Attributes:
        texts: the texts.
        columns: all columns of their rows as a `pyarrow.RecordBatch`, if asked for.
    """

    texts: list[str]
    columns: Any = None


@dataclass(frozen=True)
class Survey:
    """What a first reading of a whole file found.

    Attributes:
        texts: how many there are.
        schema: the `pyarrow.Schema` of all columns, if asked for.
    """

    texts: int
    schema: Any = None


class Corpus(Protocol):
    """A file of texts."""

    def survey(self, *, columns: bool = False) -> Survey:
        """Reads the whole file, so that an error in its last row is found before anything is computed.

        Args:
            columns: also find the schema of all columns.

        Raises:
            ValueError: a row that holds no text, or that is broken; the file and the row are named.
            ImportError: pyarrow is needed and not installed.
        """
        ...

    def chunks(self, schema: Any = None) -> Iterator[Chunk]:
        """The texts in order; with all columns, where a schema (`Survey.schema`) is given. Errors as `survey`."""
        ...


def open_corpus(path: Path, column: str = "text") -> Corpus:
    """The reader for a file, by its suffix.

    Args:
        path: .txt: each line is a text, an empty one too. .jsonl: each line is an object with the text under
            the key `column`. .parquet: the text is in the column `column`.
        column: where the text is; for .txt, what its only column is called.

    Raises:
        ValueError: another suffix.
        FileNotFoundError: no such file.
    """
    if path.suffix.lower() not in READERS:
        raise ValueError(f"input {path}: the suffix is {path.suffix!r}, expected one of {', '.join(READERS)}")
    if not path.is_file():
        raise FileNotFoundError(f"input {path}: there is no such file")
    return READERS[path.suffix.lower()](path, column)


@dataclass(frozen=True)
class Lines:
    """A file with a text on each line.

    Attributes:
        path, column: as `open_corpus` takes them.
        parse: (line, what errors call it, `column`) -> the row.
    """

    path: Path
    column: str
    parse: Callable[[str, str, str], arrow.Row]

    def survey(self, *, columns: bool = False) -> Survey:
        """See `Corpus`. A column's type is one that fits all of its lines; lines that fit none are an error."""
        texts = 0
        schema = arrow.import_pyarrow().schema([(self.column, "string")]) if columns else None
        for start, rows in self._rows():
            texts += len(rows)
            if columns:
                schema = arrow.widen(schema, rows, partial(self._place, start))
        return Survey(texts, schema)

    def chunks(self, schema: Any = None) -> Iterator[Chunk]:
        """See `Corpus`."""
        for start, rows in self._rows():
            try:
                columns = None if schema is None else arrow.record_batch(rows, schema)
            except ValueError as error:
                raise ValueError(f"{self.path}:{start} … {start + len(rows) - 1}: {error}") from error
            yield Chunk([row[self.column] for row in rows], columns)

    def _place(self, start: int, row: int) -> str:
        return f"{self.path}:{start + row}"

    def _rows(self) -> Iterator[tuple[int, list[arrow.Row]]]:
        """Some lines at a time: the number of the first, from 1, and the rows."""
        lines = enumerate(_lines(self.path), 1)
        while some := list(islice(lines, CHUNK)):
            yield some[0][0], [self.parse(line, f"{self.path}:{number}", self.column) for number, line in some]


def _lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                # Some editors put a byte order mark at the start.
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                wrong = f"byte {line[error.start]:#04x} at {error.start}"
                raise ValueError(f"{path}:{number}: not valid UTF-8 ({wrong})") from error
            yield text.removesuffix("\n").removesuffix("\r")


def _parse_plain(line: str, name: str, column: str) -> arrow.Row:
    return {column: line}


def _parse_json(line: str, name: str, column: str) -> arrow.Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: not valid JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError(f"{name}: expected an object, got {line.strip():.60}")
    if column not in row:
        raise ValueError(f"{name}: no column {column!r}, only {list(row)}; --column names another")
    parse_text(row[column], f"{name}: column {column!r}")
    return row


@dataclass(frozen=True)
class Parquet:
    """A .parquet file. Attributes: as `open_corpus` takes them."""

    path: Path
    column: str

    def survey(self, *, columns: bool = False) -> Survey:
        """See `Corpus`."""
        texts = sum(len(chunk.texts) for chunk in self.chunks())
        with self._open() as file:
            return Survey(texts, file.schema_arrow if columns else None)

    def chunks(self, schema: Any = None) -> Iterator[Chunk]:
        """See `Corpus`."""
        start = 0
        with self._open() as file:
            for batch in file.iter_batches(CHUNK, columns=[self.column] if schema is None else None):
                texts = batch.column(self.column).to_pylist()
                self._refuse_nulls(texts, start)
                start += len(texts)
                if texts:
                    yield Chunk(texts, None if schema is None else batch)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        pa = arrow.import_pyarrow()
        try:
            with pa.parquet.ParquetFile(self.path) as file:
                self._check(pa, file.schema_arrow)
                yield file
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise ValueError(f"{self.path}: not a whole .parquet file: {error}") from error

    def _check(self, pa: Any, schema: Any) -> None:
        if schema.names.count(self.column) != 1:
            raise ValueError(
                f"{self.path}: expected one column {self.column!r}, the columns are {schema.names}; "
                "--column names another"
            )
        kind = schema.field(self.column).type
        values = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not any(test(values) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
            raise ValueError(f"{self.path}: column {self.column!r} is of type {kind}, expected string")

    def _refuse_nulls(self, texts: Sequence[str | None], start: int) -> None:
        if None in texts:
            raise ValueError(f"{self.path}: column {self.column!r} is null in row {start + texts.index(None) + 1}")


READERS: dict[str, Callable[[Path, str], Corpus]] = {
    ".txt": lambda path, column: Lines(path, column, _parse_plain),
    ".jsonl": lambda path, column: Lines(path, column, _parse_json),
    ".parquet": Parquet,
}
