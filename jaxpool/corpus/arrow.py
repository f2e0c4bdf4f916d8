"""What jaxpool asks of pyarrow, which is optional: the import, schemas of several files, rows as columns."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def import_pyarrow(what: str = ".parquet files") -> Any:
    """The module `pyarrow`, `pyarrow.parquet` loaded; `what` is what needs it.

    Raises:
        ImportError: it is not installed; the message says how to install it.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"{what} need pyarrow ({error}): pip install 'jaxpool[data]'") from error
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


def unify(schema: Any, other: Any, name: str) -> Any:
    """The schema that holds what either holds; a column that one of them lacks is null there.

    Args:
        schema: a `pyarrow.Schema`, of the files before; None: there are none.
        other: that of a further file.
        name: what errors call this file.

    Raises:
        ValueError: a column is of types that fit no column together; file and column are named.
    """
    if schema is None:
        return other
    pa = import_pyarrow()
    for field in other:
        if schema.names.count(field.name) == 1:
            both = [pa.schema([("value", kind)]) for kind in (schema.field(field.name).type, field.type)]
            try:
                pa.unify_schemas(both, promote_options="permissive")
            except pa.ArrowException as error:
                raise ValueError(
                    f"{name}: column {field.name!r} is of type {field.type}, which cannot stand in one column with "
                    f"the {both[0].field(0).type} of the files before it"
                ) from error
    return pa.unify_schemas([schema, other], promote_options="permissive")


def conform(batch: Any, schema: Any) -> Any:
    """A `pyarrow.RecordBatch` with the columns of `schema`: nulls for those that it lacks.

    Raises:
        ValueError: a value does not fit its column.
    """
    if batch.schema.equals(schema):
        return batch
    pa = import_pyarrow()
    columns = []
    for field in schema:
        if field.name not in batch.schema.names:
            columns.append(pa.nulls(batch.num_rows, field.type))
            continue
        try:
            columns.append(batch.column(field.name).cast(field.type))
        except pa.ArrowException as error:
            raise ValueError(f"{field.name!r}: {error}") from error
    return pa.record_batch(columns, schema=schema)


def concatenate(batches: Sequence[Any]) -> Any:
    """Batches of one schema as one."""
    if len(batches) == 1:
        return batches[0]
    return import_pyarrow().Table.from_batches(batches).combine_chunks().to_batches()[0]


def take(batch: Any, rows: Sequence[int]) -> Any:
    """Some rows of a batch."""
    return batch.take(import_pyarrow().array(rows, "int64"))
