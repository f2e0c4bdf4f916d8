"""What jaxpool asks of pyarrow, which is optional: the import, and rows of a .jsonl file as columns."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def import_pyarrow() -> Any:
    """The module `pyarrow`, `pyarrow.parquet` loaded.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f".parquet files need pyarrow ({error}): pip install 'jaxpool[data]'") from error
    return pyarrow


def widen(schema: Any, rows: Sequence[Row], place: Callable[[int], str]) -> Any:
    """The schema that holds what `schema` holds, and these rows too.

    Ints and floats in one column make floats; a key that is missing counts as null, which fits every column.

    Args:
        schema: a `pyarrow.Schema`, of the rows before.
        rows: parsed JSON objects.
        place: what errors call a row, by its number in `rows`.

    Raises:
        ValueError: a value that fits no column together with those before it; its row and key are named.
    """
    pa = import_pyarrow()
    for key in dict.fromkeys(key for row in rows for key in row):
        old = schema.field(key).type if key in schema.names else pa.null()
        values = [row.get(key) for row in rows]
        try:
            new = _common_type(old, values)
        except (pa.ArrowException, OverflowError, ValueError) as error:
            wrong = bisect_left(range(len(values)), True, key=lambda n: not _fits(old, values[: n + 1]))
            raise ValueError(
                f"{place(wrong)}: {key!r} is {values[wrong]!r:.60}, which cannot stand in one column with the values "
                f"of {key!r} before it ({error})"
            ) from error
        if key not in schema.names:
            schema = schema.append(pa.field(key, new))
        elif new != old:
            schema = schema.set(schema.get_field_index(key), pa.field(key, new))
    return schema


def _common_type(old: Any, values: Sequence[Any]) -> Any:
    pa = import_pyarrow()
    both = [pa.schema([("value", kind)]) for kind in (old, pa.array(values).type)]
    return pa.unify_schemas(both, promote_options="permissive").field(0).type


def _fits(old: Any, values: Sequence[Any]) -> bool:
    try:
        _common_type(old, values)
    except (import_pyarrow().ArrowException, OverflowError, ValueError):
        return False
    return True


def record_batch(rows: Sequence[Row], schema: Any) -> Any:
    """Rows as a `pyarrow.RecordBatch` of `schema`.

    Raises:
        ValueError: a value does not fit its column (an int among floats that no float is equal to).
    """
    pa = import_pyarrow()
    columns = []
    for field in schema:
        try:
            columns.append(pa.array([row.get(field.name) for row in rows], field.type))
        except (pa.ArrowException, OverflowError, ValueError) as error:
            raise ValueError(f"{field.name!r}: {error}") from error
    return pa.record_batch(columns, schema=schema)
