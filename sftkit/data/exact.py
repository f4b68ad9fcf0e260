"""Tables of rows of Python values: types, numbers and the order of keys are kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.data.blocks import NULL, Block, Storage, array_of
from sftkit.data.shapes import Shape, feature_of, merged

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Features

BLOCK = 1000  # rows
#: Bytes of rows that are written together: opening a file reads a page of each of its batches.
WRITTEN = 1 << 24


@dataclass
class _Column:
    """What is known about a column: its storage, its shape, and where each kind of value first occurs."""

    storage: Storage = field(default_factory=lambda: Storage(NULL))
    shape: Shape = NULL
    firsts: dict[str, int] = field(default_factory=dict)


class ExactTable:
    """Collects rows.

    Args:
        directory: where to store them; None keeps them in memory.

    Raises:
        UnicodeEncodeError: from `add`, for text that is not valid Unicode.
        TypeError: from `add`, for values that JSON does not have.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._columns: dict[str, _Column] = {}
        self._parts: list[_Part] = []
        self._waiting: list[Mapping[str, Any]] = []
        self._rows = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row. Its values must not be changed afterwards."""
        self._waiting.append(row)
        if len(self._waiting) == BLOCK:
            self.flush()

    def flush(self) -> None:
        """Store the rows that were added."""
        rows, self._waiting = self._waiting, []
        if rows:
            self.add_block(Block.of(rows, self.storages))

    @property
    def storages(self) -> dict[str, Storage]:
        """How each column is stored so far."""
        return {name: column.storage for name, column in self._columns.items()}

    def add_block(self, block: Block) -> None:
        """Store a block after those before; it has `BLOCK` rows unless it is the last one."""
        arrays = {}
        for name, found in block.columns.items():
            column = self._columns.setdefault(name, _Column())
            column.storage = column.storage.or_wider(found.storage)
            column.shape = merged([column.shape, found.shape])
            for kind, index in found.firsts.items():
                column.firsts.setdefault(kind, self._rows + index)
            as_it_is = column.storage == found.storage
            arrays[name] = found.array if as_it_is else array_of(found.array.to_pylist(), column.storage)
        schema = self.storages
        if not self._parts or self._parts[-1].schema != schema:
            if self._parts:
                self._parts[-1].close()
            path = self._directory and self._directory / f"{len(self._parts)}.arrow"
            self._parts.append(_Part(schema, path))
        self._parts[-1].write(arrays, block.number)
        self._rows += block.number

    @property
    def columns(self) -> Features:
        """What the values are."""
        from datasets import Features

        return Features({name: feature_of(column.shape) for name, column in self._columns.items()})

    @property
    def mixed(self) -> dict[str, dict[str, int]]:
        """The columns with values of several kinds, such as text and lists, and the first row of each kind."""
        firsts = {name: dict(column.firsts) for name, column in self._columns.items()}
        for kinds in firsts.values():
            kinds.pop("null", None)
        return {name: kinds for name, kinds in firsts.items() if len(kinds) > 1}

    def dataset(self) -> Dataset:
        """The rows; columns stored as JSON have the type ``Json``."""
        import pyarrow as pa
        from datasets import Dataset, concatenate_datasets
        from datasets.table import InMemoryTable

        self.flush()
        if not self._parts:
            return Dataset.from_dict({})
        self._parts[-1].close()
        schema = self._parts[-1].schema
        if self._directory is None:
            tables = [table for part in self._parts for table in part.tables(schema)]
            return Dataset(InMemoryTable(pa.concat_tables(tables)))
        paths = [part.converted(schema) for part in self._parts]
        return concatenate_datasets([Dataset.from_file(str(path), in_memory=False) for path in paths])


class _Part:
    """Blocks of rows with the same storage, in a file or in memory."""

    def __init__(self, schema: dict[str, Storage], path: Path | None) -> None:
        self.schema, self._path = schema, path
        self._tables: list[pa.Table] = []
        self._waiting = 0  # bytes of the tables
        self._writer: Any = None

    def write(self, arrays: Mapping[str, pa.Array], number: int) -> None:
        """Add a block of ``number`` rows; columns that it lacks are null."""
        import pyarrow as pa

        missing = {name: storage for name, storage in self.schema.items() if name not in arrays}
        nulls = {name: array_of([None] * number, storage) for name, storage in missing.items()}
        table = pa.table({name: arrays[name] if name in arrays else nulls[name] for name in self.schema})
        self._tables.append(table)
        self._waiting += table.nbytes
        if self._path is not None and self._waiting >= WRITTEN:
            self._write()

    def _write(self) -> None:
        import pyarrow as pa

        tables, self._tables, self._waiting = self._tables, [], 0
        if not tables:
            return
        if self._writer is None:
            self._writer = pa.ipc.new_stream(self._path, tables[0].schema)
        self._writer.write_table(pa.concat_tables(tables).combine_chunks())

    def close(self) -> None:
        """Finish the file."""
        if self._path is not None:
            self._write()
        if self._writer is not None:
            self._writer.close()

    def tables(self, schema: dict[str, Storage]) -> Iterator[pa.Table]:
        """The blocks with another storage."""
        import pyarrow as pa

        if self._path is None:
            yield from (_convert(table, self.schema, schema) for table in self._tables)
            return
        with pa.memory_map(str(self._path)) as file:
            for batch in pa.ipc.open_stream(file):
                yield _convert(pa.Table.from_batches([batch]), self.schema, schema)

    def converted(self, schema: dict[str, Storage]) -> Path:
        """The file, or one with another storage in its place."""
        assert self._path is not None
        if schema == self.schema:
            return self._path
        other = _Part(schema, self._path.with_suffix(".converted.arrow"))
        for table in self.tables(schema):
            other.write(dict(zip(table.column_names, table.columns, strict=True)), len(table))
        other.close()
        self._path.unlink()
        assert other._path is not None
        return other._path


def _convert(table: pa.Table, old: Mapping[str, Storage], new: Mapping[str, Storage]) -> pa.Table:
    import pyarrow as pa

    columns = {}
    for name, storage in new.items():
        if name in old and old[name] == storage:
            columns[name] = table[name]
        else:
            values = table[name].to_pylist() if name in old else [None] * len(table)
            columns[name] = array_of(values, storage)
    return pa.table(columns)
