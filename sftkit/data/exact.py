"""Rows of Python values as Arrow tables from which the same values are read: types, numbers and the order of keys.

Arrow gives a column one type, which would turn 3 beside 3.5 into 3.0, dates into times, and give each mapping the keys
of all others. Columns whose values Arrow keeps are stored as they are; the others as JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sftkit.data.shapes import SCALARS, Shape, feature_of, kind_of_value, merged, shape_of
from sftkit.errors import DataError, Problem

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, Features

BLOCK = 1000  # rows
#: Bytes of rows that are written together: opening a file reads a page of each of its batches.
WRITTEN = 1 << 24
JSON, NULL = "json", "null"
_ENCODE = json.JSONEncoder(ensure_ascii=False, check_circular=False).encode
_OF_TYPES = {frozenset({kind}): name for kind, name in SCALARS.items()} | {frozenset[type](): NULL}


class Storage(NamedTuple):
    """How a column is stored.

    Attributes:
        kind: the name of an Arrow type; ``records`` for lists of mappings with the same keys, all of whose values are
            text; or ``json``.
        keys: the keys of records.
    """

    kind: str
    keys: tuple[str, ...] = ()

    def or_wider(self, other: Storage) -> Storage:
        """A storage for the values of both."""
        if self == other or other.kind == NULL:
            return self
        return other if self.kind == NULL else Storage(JSON)


@dataclass
class _Column:
    """What is known about a column: its storage, its shape, and where each kind of value first occurs."""

    storage: Storage = field(default_factory=lambda: Storage(NULL))
    shape: Shape = NULL
    firsts: dict[str, int] = field(default_factory=dict)


class BlockColumn(NamedTuple):
    """A column of some rows.

    Attributes:
        array: its values.
        storage: how they are stored.
        shape: what they are.
        firsts: the position of the first value of each kind.
    """

    array: pa.Array
    storage: Storage
    shape: Shape
    firsts: dict[str, int]


class Block(NamedTuple):
    """Some rows as columns. It can be made in another process than the table that it belongs to.

    Attributes:
        number: how many rows there are.
        columns: their columns.
    """

    number: int
    columns: dict[str, BlockColumn]

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], known: Mapping[str, Storage]) -> Block:
        """The block of some rows.

        Args:
            rows: the rows.
            known: how columns are stored already.

        Raises:
            DataError: for a name that Arrow cannot have.
            UnicodeEncodeError: for text that is not valid Unicode.
            TypeError: for values that JSON does not have.
        """
        keys = dict.fromkeys(map(tuple, rows))
        names = dict.fromkeys(chain.from_iterable(keys))
        columns: Iterator[Sequence[Any]] = (
            zip(*(row.values() for row in rows), strict=True)
            if len(keys) == 1
            else ([row.get(name) for row in rows] for name in names)
        )
        found = zip(names, columns, strict=True)
        return cls(len(rows), {name: _column_of(name, values, known.get(name)) for name, values in found})


def _column_of(name: str, values: Sequence[Any], known: Storage | None) -> BlockColumn:
    if "\0" in name:  # which ends a name in Arrow's schema
        raise DataError(Problem(f"the column {name!r} has a NUL character in its name", "data", "rename it"))
    types = {*map(type, values)}
    own = _storage_of(values, types - {type(None)})
    storage = own if known is None else known.or_wider(own)
    firsts = _first_kinds(values) if len(types) > 1 else {kind_of_value(values[0]): 0}
    return BlockColumn(array_of(values, storage), storage, _shape_of(values, own), firsts)


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


def _storage_of(values: Sequence[Any], types: set[type]) -> Storage:
    """How to store values whose types, without that of None, are ``types``."""
    kind = _OF_TYPES.get(frozenset(types), JSON)
    if kind == "int64" and any(not -(1 << 63) <= value < 1 << 63 for value in values if value is not None):
        return Storage(JSON)
    if kind == JSON and types == {list} and len({*map(type, values)}) == 1:
        records = list(chain.from_iterable(values))
        if records and {*map(type, records)} == {dict} and len(keys := {*map(tuple, records)}) == 1:
            (names,) = keys
            if names and all({type(record[name]) for record in records} == {str} for name in names):
                return Storage("records", names)
    return Storage(kind)


def array_of(values: Sequence[Any], storage: Storage) -> pa.Array:
    """Values as an Arrow array.

    Raises:
        UnicodeEncodeError: for text that is not valid Unicode.
        TypeError: for values that JSON does not have.
    """
    import pyarrow as pa

    if storage.kind == JSON:
        texts = [None if value is None else _ENCODE(value) for value in values]
        return pa.ExtensionArray.from_storage(pa.json_(pa.utf8()), pa.array(texts, pa.utf8()))
    if storage.kind == "records":
        lists = [value or [] for value in values]
        ends = [0]
        for value in lists:
            ends.append(ends[-1] + len(value))
        records = list(chain.from_iterable(lists))
        fields = [pa.array([record[name] for record in records], pa.large_utf8()) for name in storage.keys]
        empty = pa.array([value is None for value in values])
        inner = pa.StructArray.from_arrays(fields, names=list(storage.keys))
        return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), inner, mask=empty)
    types = {"string": pa.large_utf8(), "bool": pa.bool_(), "int64": pa.int64(), "float64": pa.float64()}
    return pa.array(values, types.get(storage.kind, pa.null()))


def _shape_of(values: Sequence[Any], storage: Storage) -> Shape:
    if storage.kind == "records":
        return [dict.fromkeys(storage.keys, "string")]
    return storage.kind if storage.kind != JSON else merged(map(shape_of, values))


def _first_kinds(values: Sequence[Any]) -> dict[str, int]:
    """The position of the first value of each kind."""
    firsts: dict[type, int] = {}
    for index, value in enumerate(values):
        firsts.setdefault(type(value), index)
    return {kind_of_value(values[index]): index for index in reversed(firsts.values())}
