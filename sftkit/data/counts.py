"""Counts of what was done to the data, so that nothing is lost silently."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Counts:
    """Counts by split and by event, as in ``counts.add("train", "rows truncated", 3)``."""

    by_split: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, split: str, what: str, number: int = 1) -> None:
        """Add ``number`` to the count of ``what`` in ``split``."""
        self.by_split.setdefault(split, Counter())[what] += int(number)

    def as_dict(self) -> dict[str, dict[str, int]]:
        """The counts as plain data, for the manifest."""
        return {split: dict(counter) for split, counter in self.by_split.items()}
