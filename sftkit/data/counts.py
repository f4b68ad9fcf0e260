"""Counts of what was done to the data, so that nothing is lost silently."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

NOTED = "rows noted: "  # followed by a note of the formatter
IGNORED = re.compile(r"(?P<kind>.*\b(?:column|key)) (?P<name>.+) ignored")


@dataclass
class Counts:
    """Counts by split and by event, as in ``counts.add("train", "rows truncated", 3)``.

    Attributes:
        by_split: the counts of each split.
        by_source: of each split, those of each source that are known by source, by its number.
    """

    by_split: dict[str, Counter[str]] = field(default_factory=dict)
    by_source: dict[str, dict[int, Counter[str]]] = field(default_factory=dict)

    def add(self, split: str, what: str, number: int = 1) -> None:
        """Add ``number`` to the count of ``what`` in ``split``."""
        self.by_split.setdefault(split, Counter())[what] += int(number)

    def add_each(self, split: str, what: str, number_N: np.ndarray, source_N: np.ndarray | None) -> None:  # noqa: N803
        """Add to the count of ``what`` for each row of ``split``, and to that of the row's source.

        Args:
            split: the split.
            what: the event.
            number_N: what to add for each row, or whether to add 1.
            source_N: the number of the source of each row; None if there is one source.
        """
        self.add(split, what, int(number_N.sum()))
        if source_N is not None:
            for source in sorted({*source_N[number_N > 0].tolist()}):
                self.add_to_source(split, source, what, int(number_N[source_N == source].sum()))

    def add_to_source(self, split: str, source: int, what: str, number: int) -> None:
        """Add ``number`` to the count of ``what`` of a source, by its number; that of the split stays."""
        self.by_source.setdefault(split, {}).setdefault(source, Counter())[what] += number

    def merge_sources(self, other: Counts) -> None:
        """Add the counts of another that are known by source."""
        for split, sources in other.by_source.items():
            for source, counts in sources.items():
                for what, number in counts.items():
                    self.add_to_source(split, source, what, number)

    def note(self, split: str, note: str, number: int = 1) -> None:
        """Add ``number`` rows to those that have this note; see `sftkit.api.Formatted`."""
        self.add(split, f"{NOTED}{note}", number)

    def as_dict(self) -> dict[str, dict[str, int]]:
        """The counts as plain data, for the manifest."""
        return {split: dict(counter) for split, counter in self.by_split.items()}


def notes_of(counts: Mapping[str, Any]) -> dict[str, int]:
    """The number of rows of each note among the counts of a split."""
    return {what.removeprefix(NOTED): number for what, number in counts.items() if what.startswith(NOTED)}


def without_notes(counts: Mapping[str, Any]) -> dict[str, Any]:
    """The counts of a split without its notes."""
    return {what: number for what, number in counts.items() if not what.startswith(NOTED)}


def without_fix(note: str) -> tuple[str, str]:
    """What a note says, and the fix that follows ``->``; an empty text if nothing has to be done."""
    what, _, fix = note.partition(" -> ")
    return what, fix


def describe_notes(notes: Mapping[str, int]) -> list[str]:
    """Notes for people, each with its number of rows.

    Columns, or keys, that were ignored in the same number of rows share a line: ``columns id, source ignored (52
    rows)``. Fixes are left out.
    """
    lines: dict[tuple[str, int], list[str]] = {}
    for note, number in notes.items():
        what, _ = without_fix(note)
        found = IGNORED.fullmatch(what)
        lines.setdefault((found["kind"] if found else what, number), []).extend([found["name"]] if found else [])
    described = []
    for (what, number), names in lines.items():
        plural = "s" if len(names) > 1 else ""
        text = f"{what}{plural} {', '.join(names)} ignored" if names else what
        described.append(f"{text} ({number:,} {'row' if number == 1 else 'rows'})")
    return described


def note_lines(summary: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What was noted about the rows of each split, from the counts of the splits; one line each, none without notes."""
    found = {split: describe_notes(notes_of(counts)) for split, counts in summary.items()}
    return [f"noted in {split}: {'; '.join(notes)}" for split, notes in found.items() if notes]
