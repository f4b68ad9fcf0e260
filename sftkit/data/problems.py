"""Problems of data that only become clear from all of its rows."""

from __future__ import annotations

from collections.abc import Mapping

from sftkit.data.length import NOTHING_TRAINED
from sftkit.errors import DataError, Problem

DROPPED = "rows dropped: "  # followed by a reason of a formatter
FILTERED = "rows dropped by "  # followed by a plugin that filters rows, and a reason


def dropped_by(plugin: str, reason: str, source: str = "") -> str:
    """What rows are counted as that the filter of a plugin drops; ``source`` is one of several."""
    return f"{FILTERED}{plugin}: {reason}{f' ({source})' if source else ''}"


def nothing_left(
    split: str, counts: Mapping[str, int], trained: int, limit: int, first_row: str, made_by: str
) -> DataError:
    """The error for a split without examples, with the reasons.

    Args:
        split: its name.
        counts: what was done to its rows.
        trained: the trained tokens, before anything was cut.
        limit: ``data.max_length``.
        first_row: its first row.
        made_by: the plugin and the hook that made the formatter.
    """
    where = f"data.{split}"
    if trained:
        fix = "increase data.max_length, or shorten the prompts"
        return DataError(Problem(f"no trained token is left within data.max_length={limit}", where, fix))
    reasons = [what.removeprefix(DROPPED) for what in counts if what.startswith((DROPPED, FILTERED))]
    masked = ["every label is masked"] if counts.get(NOTHING_TRAINED) else []
    why = "; ".join(reasons + masked) or "every row is empty or malformed"
    fix = f"check what the formatter ({made_by}) and the chat template train; the first row is {first_row!r}"
    return DataError(Problem(f"no row can be trained on: {why}", where, fix))


def several_types(mixed: Mapping[str, Mapping[str, str]], where: str) -> list[Problem]:
    """Problems for columns with values of several types, given the place of the first value of each type."""
    return [
        Problem(f"column {name!r} has several types: {places}", where, "give it one type")
        for name, firsts in mixed.items()
        if (places := "; ".join(f"{kind} ({place})" for kind, place in sorted(firsts.items())))
    ]
