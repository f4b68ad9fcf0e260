"""What happens to lines and rows that cannot be read: an error, or they are skipped and counted."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sftkit.errors import DataError, Problem

SKIP = "set data.on_bad_row=skip"


@dataclass
class Report:
    """Collects what a reader skips.

    Attributes:
        where: the configuration key that names the data.
        skip: whether unreadable lines are skipped; else the first one is an error.
        limit: how many may be skipped.
        bad: how many were skipped.
        notes: other things to tell the user, as counts by description.
    """

    where: str
    skip: bool = False
    limit: int = 0
    bad: int = 0
    notes: Counter[str] = field(default_factory=Counter)

    def unreadable(self, place: str, what: str, fix: str) -> None:
        """Count a line that is skipped.

        Args:
            place: the file with its line, or the row.
            what: what is wrong with it.
            fix: how to fix it.

        Raises:
            DataError: if lines are not skipped, or too many are.
        """
        if not self.skip:
            raise DataError(Problem(what, f"{self.where}, {place}", f"{fix}; or {SKIP}"))
        self.bad += 1
        if self.bad > self.limit:
            fix = "fix the data, or increase data.max_bad_rows"
            raise DataError(Problem(f"more than {self.limit} lines cannot be read", f"{self.where}, {place}", fix))

    @contextmanager
    def repeated(self) -> Iterator[None]:
        """Nothing counts inside: what is read there was counted before."""
        before = self.limit, self.bad, self.notes
        self.limit, self.notes = sys.maxsize, Counter()
        try:
            yield
        finally:
            self.limit, self.bad, self.notes = before

    def take(self) -> tuple[int, Counter[str]]:
        """What was counted since the last call."""
        taken = self.bad, self.notes
        self.limit, self.bad, self.notes = self.limit - self.bad, 0, Counter()
        return taken
