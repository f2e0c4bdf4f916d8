"""Writing embeddings to .npy and .parquet files as they come, so that they need not all fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jaxpool.corpus import arrow
from jaxpool.corpus.chunk import Chunk
from jaxpool.whole import whole_file

EMBEDDING = "embedding"

# Bytes of vectors that make a row group: large enough to be read fast, small enough to be held in memory.
ROW_GROUP_BYTES = 32 * 2**20

Write = Callable[[Chunk, np.ndarray], None]
"""(chunk, float32 [n, D]) -> nothing: writes one chunk's embeddings behind those before."""


def keeps_columns(path: Path) -> bool:
    """Whether an output of this suffix keeps the input's columns."""
    return path.suffix.lower() == ".parquet"


def check_output(path: Path) -> None:
    """Finds out before anything is computed whether `path` can be written.

    Raises:
        ValueError: the suffix is none of those that can be written.
        FileNotFoundError: its directory is not there.
        IsADirectoryError: it is a directory itself.
        ImportError: pyarrow is needed and not installed.
    """
    if path.suffix.lower() not in WRITERS:
        raise ValueError(
            f"output {path}: the suffix is {path.suffix!r}, expected one of {', '.join(WRITERS)}; a name that "
            "ends in / is a directory of shards"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"output {path}: there is no directory {path.parent}")
    if path.is_dir():
        raise IsADirectoryError(f"output {path}: is a directory")
    if keeps_columns(path):
        arrow.import_pyarrow()


@contextmanager
def open_output(path: Path, width: int, schema: Any = None) -> Iterator[Write]:
    """Opens an output; it appears under `path` when the `with` block has ended without an error.

    Args:
        path: .npy: float32 [n, D] in the order of the texts. .parquet: the input's columns, and `embedding`
            as a fixed-size list of D float32.
        width: D.
        schema: of the input's columns, for .parquet.

    Raises:
        ValueError: the columns cannot be written.
    """
    with whole_file(path) as part, WRITERS[path.suffix.lower()](part, width, schema) as write:
        yield write


@contextmanager
def _npy(path: Path, width: int, schema: Any) -> Iterator[Write]:
    rows = 0

    def header() -> None:
        # numpy leaves room in the header for a longer first axis, so that it can be written again in place.
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, width)})

    def write(chunk: Chunk, vectors: np.ndarray) -> None:
        nonlocal rows
        file.write(np.ascontiguousarray(vectors, "<f4").data)
        rows += len(vectors)

    with path.open("wb") as file:
        header()
        yield write
        file.seek(0)
        header()


@contextmanager
def _parquet(path: Path, width: int, schema: Any) -> Iterator[Write]:
    pa = arrow.import_pyarrow()
    vector = pa.list_(pa.float32(), width)
    whole = schema.append(pa.field(EMBEDDING, vector))
    pending: list[Any] = []

    def flush() -> None:
        if pending:
            writer.write_table(pa.Table.from_batches(pending, whole))
            pending.clear()

    def write(chunk: Chunk, vectors: np.ndarray) -> None:
        values = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=vector)
        pending.append(pa.RecordBatch.from_arrays([*chunk.columns.columns, values], schema=whole))
        if sum(batch.num_rows for batch in pending) * width * 4 >= ROW_GROUP_BYTES:
            flush()

    try:
        with pa.parquet.ParquetWriter(path, whole) as writer:
            yield write
            flush()
    except pa.ArrowException as error:
        raise ValueError(f"the columns cannot be written as .parquet: {error}") from error


WRITERS: dict[str, Callable[[Path, int, Any], AbstractContextManager[Write]]] = {".npy": _npy, ".parquet": _parquet}
