"""The rows of a stream's source, one pass after the other, each from any place on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

from sftkit.data.arrow_files import common_features, tables_of
from sftkit.data.files import kind_of_all
from sftkit.data.lines import START, Place
from sftkit.data.media import has_media, read_rows, undecoded
from sftkit.data.opening import TEXT_KINDS
from sftkit.data.parts import Part, divide, divided
from sftkit.data.report import Report
from sftkit.data.text_files import byte_place, part_rows, text_rows

if TYPE_CHECKING:
    from datasets import Dataset, Features, IterableDataset

#: The column of a stream with the file and line of each row, for error messages.
PLACE = "sftkit: file and line"
SLICE = 1000  # rows that are read at once of what is stored in columns
MEDIA_SLICE = 100

Row = dict[str, Any]
At = list[int]
"""A place between two rows, as plain data; empty is the beginning."""
Rows = Iterator[tuple[At, Row]]
"""Rows, each with the place behind it."""


class Pass(NamedTuple):
    """A pass over a source.

    Attributes:
        number: its number, from 0.
        seed: seed of the order of files.
        shuffle_buffer: size of the shuffle buffer in rows; 0 keeps the order.
        rank: the number of the process.
        world_size: the number of processes, which share the rows.
    """

    number: int
    seed: int
    shuffle_buffer: int
    rank: int = 0
    world_size: int = 1


class StreamRows(Protocol):
    """The rows of a source."""

    @property
    def shuffles(self) -> bool:
        """Whether the rows of a pass come shuffled; else only their files do, if there is a shuffle buffer."""

    @property
    def features(self) -> Features | None:
        """The columns, if the source names them."""

    def rows(self, of: Pass, report: Report, at: At) -> Rows:
        """The rows of a pass behind a place; lines that are skipped are reported."""


Parts: TypeAlias = Callable[[str, int], list[Part] | None]


def parts_by_file(where: str) -> Parts:
    """Divides a file by its name among a number of processes, and asks each file once."""
    return functools.cache(functools.partial(divide, where=where))


@dataclass(frozen=True)
class FileRows:
    """The rows of files, which are not read again before a place.

    Text files have Python values as written, and each row has its file and line in the column `PLACE`.

    Attributes:
        names: the files.
        read: the rows of a file, or of a part of it, behind a place.
        divide: the parts of a file for a number of processes; None if it has to be read as a whole.
        features: the columns, if the files name them.
    """

    names: Sequence[str]
    read: Callable[[str, Part | None, At, Report], Rows]
    divide: Parts
    features: Features | None = None
    shuffles: bool = False

    @classmethod
    def of(cls, names: Sequence[str], split: str | None, where: str, parts: Parts | None = None) -> FileRows:
        """The rows of files of one kind.

        Args:
            names: paths or URLs.
            split: the split to read, if a JSON file holds several.
            where: the configuration key, for errors.
            parts: as of `parts_by_file`, if it is to be asked once for several passes.

        Raises:
            DataError: if the files are of several kinds, or the types of their columns differ.
        """
        parts = parts or parts_by_file(where)
        if kind_of_all(names, where) in TEXT_KINDS:
            return cls(names, functools.partial(_text, split), parts)
        features = common_features(names, where)
        return cls(names, functools.partial(_tables, features), parts, features)

    @classmethod
    def of_saved(cls, name: str, saved: Dataset) -> FileRows:
        """The rows of a data set that was saved with ``save_to_disk``."""
        return cls(
            [name], functools.partial(_of_saved, saved), lambda _, number: divided([len(saved)], number), saved.features
        )

    def rows(self, of: Pass, report: Report, at: At) -> Rows:
        """The rows of a pass behind a place.

        Processes share whole files if their number allows, else each reads its part of each file. Of a file without
        parts, each reads all rows and uses every n-th one.
        """
        import numpy as np

        order = [*range(len(self.names))]
        if of.shuffle_buffer:
            order = np.random.default_rng([of.seed, of.number]).permutation(len(order)).tolist()
        if whole := len(order) % of.world_size == 0:
            order = order[of.rank :: of.world_size]
        first, turn, *inside = at or [0, 0]
        for number in range(first, len(order)):
            part = None if whole else self._part(order[number], of)
            shared = not whole and part is None
            for after, row in self.read(self.names[order[number]], part, inside, report):
                own = not shared or turn == of.rank
                turn = (turn + 1) % of.world_size if shared else turn
                if own:
                    yield [number, turn, *after], row
            inside = []

    def _part(self, number: int, of: Pass) -> Part | None:
        """The part of a file for this process; in each pass another one, if there is a shuffle buffer."""
        import numpy as np

        parts = self.divide(self.names[number], of.world_size)
        if parts is None:
            return None
        if of.shuffle_buffer:
            return parts[np.random.default_rng([of.seed, of.number, number]).permutation(of.world_size)[of.rank]]
        return parts[of.rank]


def _text(split: str | None, name: str, part: Part | None, at: At, report: Report) -> Rows:
    start = Place(*at) if at else START
    if part is not None:
        for _, row, after, byte in part_rows(name, part, report, start):
            yield [*after], {**row, PLACE: byte_place(name, byte or 0)}
        return
    for line, row, after, _ in text_rows(name, split, report, start):
        yield [*after], {**row, PLACE: f"{name}:{line}" if line else f"{name}, row {after.rows}"}


def _tables(features: Features, name: str, part: Part | None, at: At, report: Report) -> Rows:
    from datasets import Dataset, DatasetInfo

    first, stop = part or (0, None)
    (start,) = at or [first]
    if stop is not None and start >= stop:
        return
    for table in tables_of(name, features, report.where, start, stop):
        some = Dataset(table, DatasetInfo(features=features), fingerprint=name)
        yield from _numbered(name, start, read_rows(some, slice(None)))
        start += len(table)


def _of_saved(saved: Dataset, name: str, part: Part | None, at: At, report: Report) -> Rows:
    size = MEDIA_SLICE if has_media(saved.features) else SLICE
    begin, stop = part or (0, len(saved))
    (first,) = at or [begin]
    for start in range(first, stop, size):
        yield from _numbered(name, start, read_rows(saved, slice(start, min(start + size, stop))))


def _numbered(name: str, start: int, columns: dict[str, Any]) -> Rows:
    for number, values in enumerate(zip(*columns.values(), strict=True), start=start + 1):
        yield [number], {**dict(zip(columns, values, strict=True)), PLACE: f"{name}, row {number}"}


@dataclass(frozen=True)
class LoadedRows:
    """The rows of an IterableDataset, shuffled by `datasets`. Those before a place are read again.

    The state of an IterableDataset has not the rows in its shuffle buffers, so that it could not go on with the same
    rows.
    """

    loaded: IterableDataset
    shuffles: bool = True

    @property
    def features(self) -> Features | None:
        """The columns, if they are known."""
        return self.loaded.features

    def rows(self, of: Pass, report: Report, at: At) -> Rows:
        """The rows of a pass behind a place."""
        from datasets.distributed import split_dataset_by_node

        rows, media = self.loaded, bool(self.features and has_media(self.features))
        if media:
            rows = rows.cast(undecoded(self.features))
        if of.shuffle_buffer:
            rows = rows.shuffle(seed=of.seed, buffer_size=of.shuffle_buffer)
        rows.set_epoch(of.number)
        if of.world_size > 1:
            rows = split_dataset_by_node(rows, of.rank, of.world_size)
        (start,), before = at or [0], 0
        if self.features is None:  # in batches, each row would have the columns of all
            for number, row in enumerate(islice(rows, start, None), start=start + 1):
                yield [number], row
            return
        for columns in rows.iter(batch_size=MEDIA_SLICE if media else SLICE):
            size = len(next(iter(columns.values())))
            for index in range(max(start - before, 0), size):
                yield [before + index + 1], {name: values[index] for name, values in columns.items()}
            before += size


def as_columns(rows: Iterable[Row], names: Iterable[str] = ()) -> dict[str, list[Any]]:
    """Rows as columns, with None where a row lacks a value.

    Args:
        rows: the rows.
        names: columns to have in any case.
    """
    rows = list(rows)
    found = dict.fromkeys([*names, *(name for row in rows for name in row)])
    return {name: [row.get(name) for row in rows] for name in found}
