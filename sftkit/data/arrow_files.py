"""Parquet and Arrow files: read in batches, and brought to the same columns."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sftkit.data.opening import cannot_read, is_remote, kind_of, open_binary
from sftkit.errors import DataError, Problem

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Features

BATCH = 1000  # rows


def common_features(names: Sequence[str], where: str) -> Features:
    """The columns of all files; numbers and texts of different sizes are brought to the larger one.

    Raises:
        DataError: if the types of a column cannot be brought together, with the file and the column.
    """
    import pyarrow as pa
    from datasets import Features

    common: dict[str, Any] = {}
    for name in names:
        with _opened(name, where) as file:
            features = Features.from_arrow_schema(file.schema_arrow if kind_of(name) == "parquet" else file.schema)
        for column, feature in features.items():
            known = common.setdefault(column, feature)
            if known == feature:
                continue
            pair = [pa.schema([(column, Features({column: each}).arrow_schema.types[0])]) for each in (known, feature)]
            try:
                both = pa.unify_schemas(pair, promote_options="permissive")
            except pa.ArrowTypeError:
                what = f"column {column!r} is of type {pair[1].types[0]}, but of type {pair[0].types[0]} in other files"
                fix = "give the column one type, or use data.mix"
                raise DataError(Problem(what, f"{where}, {name}", fix)) from None
            common[column] = feature if pa.types.is_null(pair[0].types[0]) else Features.from_arrow_schema(both)[column]
    return Features(common)


def write_tables(names: Sequence[str], features: Features, path: Path, where: str) -> list[int]:
    """Write the rows of files into one Arrow file, with null for columns that a file lacks.

    Returns:
        The number of rows of each file.

    Raises:
        DataError: if a file cannot be read.
    """
    import pyarrow as pa

    counts = []
    with pa.ipc.new_stream(str(path), features.arrow_schema) as writer:
        for name in names:
            counts.append(0)
            for table in tables_of(name, features, where):
                writer.write_table(table)
                counts[-1] += len(table)
    return counts


def rows_of_groups(name: str, where: str) -> list[int] | None:
    """The rows of each row group of a Parquet file, or record batch of an Arrow file.

    None for an Arrow file that has to be read to know them: a stream, or one of a remote system.
    """
    with _opened(name, where) as file:
        if kind_of(name) == "parquet":
            return [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
    if is_remote(name) or not hasattr(file, "get_batch"):
        return None
    import pyarrow as pa

    with pa.memory_map(name) as mapped:
        file = pa.ipc.open_file(mapped)
        return [file.get_batch(index).num_rows for index in range(file.num_record_batches)]


def tables_of(name: str, features: Features, where: str, start: int = 0, stop: int | None = None) -> Iterator[pa.Table]:
    """The rows of a file from the row ``start`` to ``stop``, with null for columns that it lacks.

    Raises:
        DataError: if the file cannot be read.
    """
    import pyarrow as pa
    from datasets.table import table_cast

    schema = features.arrow_schema
    for batch in _batches(name, where, start, stop):
        table = pa.Table.from_batches([batch])
        for column in set(schema.names) - set(table.column_names):
            table = table.append_column(column, pa.nulls(len(table), schema.field(column).type))
        yield table_cast(table.select(schema.names), schema)


def _batches(name: str, where: str, start: int, stop: int | None) -> Iterator[pa.RecordBatch]:
    left = sys.maxsize if stop is None else stop - start
    with _opened(name, where) as file:
        if kind_of(name) == "parquet":
            start, batches = _of_groups(file, start, left)
        elif hasattr(file, "get_batch"):
            batches = (file.get_batch(index) for index in range(file.num_record_batches))
        else:
            batches = file
        for batch in batches:
            if start < len(batch):
                some = batch.slice(start, left)
                left -= len(some)
                yield some
            if left <= 0:
                return
            start = max(start - len(batch), 0)


def _of_groups(file: Any, start: int, number: int) -> tuple[int, Iterator[pa.RecordBatch]]:
    """Batches of the row groups that have some rows, and where in the first of them the rows start."""
    sizes = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
    first = 0
    while first < len(sizes) and sizes[first] <= start:
        start, first = start - sizes[first], first + 1
    last, rows = first, 0
    while last < len(sizes) and rows < start + number:
        rows, last = rows + sizes[last], last + 1
    return start, file.iter_batches(batch_size=BATCH, row_groups=range(first, last))


@contextmanager
def _opened(name: str, where: str) -> Iterator[Any]:
    """A reader of a Parquet file, or of an Arrow file in one of its two formats."""
    try:
        with open_binary(name, where) as source:
            yield _reader(name, source)
    except DataError:
        raise
    except Exception as error:  # of Arrow, or of a file system
        raise DataError(cannot_read(name, error, where)) from error


def _reader(name: str, source: IO[bytes]) -> Any:
    import pyarrow as pa
    from pyarrow import parquet

    if kind_of(name) == "parquet":
        return parquet.ParquetFile(source)
    in_file_format = source.read(6) == b"ARROW1"
    source.seek(0)
    return pa.ipc.open_file(source) if in_file_format else pa.ipc.open_stream(source)
