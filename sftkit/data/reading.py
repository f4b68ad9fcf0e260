"""Rows of files, and rows that are Python values, with the place of each row."""

from __future__ import annotations

import bisect
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sftkit.data import cache
from sftkit.data.arrow_files import common_features, write_tables
from sftkit.data.exact import ExactTable
from sftkit.data.files import kind_of_all
from sftkit.data.json_blocks import add_lines
from sftkit.data.json_files import half_character
from sftkit.data.media import detach_images, holds_files
from sftkit.data.opening import TEXT_KINDS
from sftkit.data.report import Report
from sftkit.data.splits import choose_split
from sftkit.data.text_files import text_rows
from sftkit.errors import DataError, Problem

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, Features

    from sftkit.config import DataSection
    from sftkit.data.pool import Pool


class Places:
    """Where rows come from: of each run of rows on lines one after the other, its first row, file and line."""

    def __init__(self) -> None:
        self._files: list[str] = []
        self._starts: list[int] = []  # the first row of each file
        self._rows, self._lines = array("q"), array("q")
        self._next = 0

    def start_file(self, name: str) -> None:
        """The next rows come from this file."""
        self._files.append(name)
        self._starts.append(self._next)
        self._rows.append(self._next)
        self._lines.append(0)

    def add(self, line: int) -> None:
        """Add a row on this line of the file; 0 if that is not known."""
        first, first_line = self._rows[-1], self._lines[-1]
        if line != (first_line + self._next - first if first_line else 0):
            self._rows.append(self._next)
            self._lines.append(line)
        self._next += 1

    def add_lines(self, first: int, number: int) -> None:
        """Add rows on lines one after the other."""
        self.add(first)
        self._next += number - 1

    def skip(self, number: int) -> None:
        """Add rows whose lines are not known."""
        self._next += number

    def files(self, rows_N: np.ndarray) -> np.ndarray:  # noqa: N803 (a shape)
        """The number of the file of each row (int64, N), from 0."""
        import numpy as np

        return np.searchsorted(np.asarray(self._starts), rows_N, side="right") - 1

    def __call__(self, row: int) -> str:
        """The place of a row, for error messages."""
        if not self._files:
            return f"row {row + 1}"
        file = bisect.bisect_right(self._starts, row) - 1
        run = bisect.bisect_right(self._rows, row) - 1
        name, line = self._files[file], self._lines[run]
        return f"{name}:{line + row - self._rows[run]}" if line else f"{name}, row {row - self._starts[file] + 1}"


@dataclass(frozen=True)
class Read:
    """Rows that were read.

    Attributes:
        rows: the rows; ``rows.features`` is how they are stored.
        columns: what the values are.
        bad: how many lines or rows were skipped because they could not be read.
        notes: other things to tell the user, as counts by description.
        place: describes where a row comes from.
        mixed: columns with values of several kinds, such as text and lists, and the first row of each kind.
        scratch: keeps the files of the rows while this object is used.
    """

    rows: Dataset
    columns: Features
    bad: int = 0
    notes: Mapping[str, int] = field(default_factory=dict)
    place: Places = field(default_factory=Places)
    mixed: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    scratch: cache.Scratch | None = None

    @classmethod
    def of(cls, rows: Dataset) -> Read:
        """Rows that `datasets` has read."""
        return cls(rows, rows.features)


def report_of(data: DataSection, where: str) -> Report:
    """A report that skips what the run skips."""
    return Report(where, data.on_bad_row == "skip", data.max_bad_rows)


def read_files(
    names: Sequence[str], split: str | None, data: DataSection, where: str, pool: Pool | None = None
) -> Read:
    """Read files of one kind; a column that a file lacks is null in its rows.

    Args:
        names: paths or URLs.
        split: the split to read, if a JSON file holds several; None is for evaluation data.
        data: says what happens to lines that cannot be read.
        where: the configuration key, for errors.
        pool: workers that read JSON lines; None reads them here. The result is the same.

    Raises:
        DataError: if the files are of several kinds or cannot be read; with file and line if known.
    """
    kind = kind_of_all(names, where)
    scratch, places = cache.Scratch(), Places()
    if kind not in TEXT_KINDS:
        return _read_arrow(names, places, scratch, where)
    if kind == "json" and pool is not None and pool.size > 1 and (made := _read_lines(names, pool, where)) is not None:
        return made
    report, table = report_of(data, where), ExactTable(scratch.path)
    for name in names:
        places.start_file(name)
        for line, row, *_ in text_rows(name, split, report):
            places.add(line)
            table.add(row)
    rows = table.dataset()
    return Read(rows, table.columns, report.bad, report.notes, places, table.mixed, scratch)


def _read_lines(names: Sequence[str], pool: Pool, where: str) -> Read | None:
    """Files of JSON lines, read by workers; None if a line is not simply a row, which is for `text_rows` to tell."""
    scratch, places = cache.Scratch(), Places()
    table = ExactTable(scratch.path)
    if not add_lines(names, pool, where, table, places):
        return None
    rows = table.dataset()
    return Read(rows, table.columns, place=places, mixed=table.mixed, scratch=scratch)


def _read_arrow(names: Sequence[str], places: Places, scratch: cache.Scratch, where: str) -> Read:
    from datasets import Dataset

    features, path = common_features(names, where), scratch.path / "rows.arrow"
    for name, number in zip(names, write_tables(names, features, path, where), strict=True):
        places.start_file(name)
        places.skip(number)
    rows = Dataset.from_file(str(path), in_memory=False)
    return Read(rows, rows.features, place=places, scratch=scratch)


def read_list(rows: Sequence[Mapping[str, Any]], data: DataSection, where: str) -> Read:
    """Rows that are Python values. Values that JSON does not have, such as images, get a type of Arrow.

    Raises:
        DataError: for text that is not valid Unicode, with the row.
    """
    from datasets import Features, concatenate_datasets

    report, places = report_of(data, where), Places()
    try:
        others = _columns_beyond_json(rows)
    except UnicodeEncodeError:
        kept = list(_valid_rows(rows, report))
        places = _RowNumbers([number for number, _ in kept])
        rows = [row for _, row in kept]
        others = _columns_beyond_json(rows)
    table = ExactTable()
    for row in rows:
        table.add({name: value for name, value in row.items() if name not in others} if others else row)
    made, columns = table.dataset(), table.columns
    if others:
        typed = _typed([{name: row.get(name) for name in others} for row in rows], where)
        made = concatenate_datasets([made, typed], axis=1) if made.column_names else typed
        columns = Features({**columns, **typed.features})
    return Read(made, columns, report.bad, report.notes, places, table.mixed)


def read_object(value: Any, split: str | None, data: DataSection, where: str) -> Read:
    """The rows of a loaded object.

    Raises:
        DataError: if it is not a Dataset, a DatasetDict with the split, or a list of dicts.
    """
    from datasets import Dataset, DatasetDict, IterableDataset

    if isinstance(value, DatasetDict):
        value = value[choose_split(value, split, "the DatasetDict", where)]
    if isinstance(value, Dataset):
        if value.format["type"] == "custom":
            what = "the data set has a transform, but rows are only prepared once"
            fix = "apply the transform with map(), or remove it with reset_format()"
            raise DataError(Problem(what, where, fix))
        return Read.of(value)
    if isinstance(value, list) and all(isinstance(row, dict) for row in value):
        return read_list(value, data, where)
    if isinstance(value, IterableDataset):
        fix = "set data.streaming=true for training data, or use Dataset.from_list(list(data.take(n)))"
        raise DataError(Problem("an IterableDataset can only be used as a stream", where, fix))
    fix = "use a path, a Dataset, a DatasetDict, or a list of dicts"
    raise DataError(Problem(f"unsupported data type: {type(value).__name__}", where, fix))


def _typed(rows: list[dict[str, Any]], where: str) -> Dataset:
    """Rows with types of Arrow, and with images as `datasets` stores them."""
    import pyarrow as pa
    from datasets import Dataset

    try:
        made = Dataset.from_list(rows)
        return Dataset.from_list(detach_images(rows)) if holds_files(made.features) else made
    except (pa.ArrowInvalid, pa.ArrowTypeError, UnicodeEncodeError) as error:
        first = str(error).splitlines()[0]
        what = f"cannot read the columns {', '.join(rows[0])}: {first}"
        raise DataError(Problem(what, where, "give all rows the same type, or use values that JSON has")) from error


class _RowNumbers(Places):
    """The places of rows of which some were removed."""

    def __init__(self, numbers: list[int]) -> None:
        super().__init__()
        self._numbers = numbers

    def __call__(self, row: int) -> str:
        return f"row {self._numbers[row] + 1}"


def _columns_beyond_json(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The columns with values that JSON does not have."""
    encode = json.JSONEncoder(ensure_ascii=False).encode
    found: dict[str, None] = {}
    for row in rows:
        for name, value in row.items():
            if value is None or name in found:
                continue
            try:
                (value if type(value) is str else encode(value)).encode()
            except TypeError:
                found[name] = None
    return list(found)


def _valid_rows(rows: Sequence[Mapping[str, Any]], report: Report) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, row in enumerate(rows):
        if (column := half_character(row)) is None:
            yield number, row
        else:
            what = f"column {column!r} has half of a surrogate pair, such as half an emoji"
            report.unreadable(f"row {number + 1}", what, "fix the text, or remove the row")
