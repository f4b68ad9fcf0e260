"""Rows of Python values as columns of Arrow, from which the same values are read.

Arrow gives a column one type, which would turn 3 beside 3.5 into 3.0, dates into times, and give each mapping the keys
of all others. Columns whose values Arrow keeps are stored as they are; the others as JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from sftkit.data.shapes import SCALARS, Shape, kind_of_value, merged, shape_of
from sftkit.errors import DataError, Problem

if TYPE_CHECKING:
    import pyarrow as pa

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
