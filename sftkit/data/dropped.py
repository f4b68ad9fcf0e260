"""Dropped rows that are kept to be shown: some of each reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

KEPT = 20  # rows of each reason
LONGEST = 400  # characters of a row


class DroppedRow(NamedTuple):
    """A row that was dropped or skipped.

    Attributes:
        number: its number in its source, from 0.
        place: where it is: file and line if it comes from a file.
        what: why, as it is counted.
        detail: what is particular to this row; may be empty.
        row: the row as text, or the start of it.
    """

    number: int
    place: str
    what: str
    detail: str
    row: str


@dataclass
class DroppedRows:
    """The first dropped rows of each reason, in the order of the data.

    Attributes:
        rows: the rows.
    """

    rows: list[DroppedRow] = field(default_factory=list)
    _numbers: Counter[str] = field(default_factory=Counter)

    def add(self, number: int, place: Callable[[int], str], what: str, detail: str, row: Callable[[], str]) -> bool:
        """Add a row, unless there are enough of its reason; returns whether it was added.

        Args:
            number: its number in its source.
            place: describes where the row of a number is.
            what: why it was dropped, as it is counted.
            detail: what is particular to this row.
            row: makes the text of the row.
        """
        self._numbers[what] += 1
        if wanted := self._numbers[what] <= KEPT:
            self.rows.append(DroppedRow(number, place(number), what, detail, row()[:LONGEST]))
        return wanted

    def extend(self, rows: Iterable[DroppedRow]) -> None:
        """Add rows that come after those before."""
        for each in rows:
            self._numbers[each.what] += 1
            if self._numbers[each.what] <= KEPT:
                self.rows.append(each)


def row_text(columns: Mapping[str, Any], at: int = 0) -> str:
    """A row of some columns as text, for people."""
    return str({name: values[at] for name, values in columns.items()})[:LONGEST]


def dropped_rows(listed: Iterable[Mapping[str, Any]]) -> list[DroppedRow]:
    """Dropped rows from plain data."""
    return [DroppedRow(**each) for each in listed]
