"""The collator of a run is tried on each split before weights are loaded."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from sftkit.errors import SftkitError
from sftkit.run.verdict import Verdict

if TYPE_CHECKING:
    from sftkit.run.stages import PreparedRun

FIRST = 64  # rows of which the shortest and the longest are in the batch, so that there is padding
MOST = 4  # rows of the batch


def collator_verdicts(run: PreparedRun) -> list[Verdict]:
    """Make a batch of a few rows of each split, and compare it with them.

    Returns:
        A verdict on each problem of the first batch that does not keep the contract of collators.

    Raises:
        HookError: if the collator of a plugin fails.
    """
    try:
        for rows in run.data.splits.values():
            if examples := _some(rows):
                run.collator.try_on(examples)
    except SftkitError as error:
        return [Verdict("collator", "wrong", each.what, each.fix, each.where) for each in error.problems]
    return []


def _some(rows: Any) -> list[dict[str, Any]]:
    """The first two rows, and the shortest and the longest of the first ones."""
    if not hasattr(rows, "column_names"):
        return [*islice(iter(rows), MOST)]
    lengths = [len(ids) for ids in rows[:FIRST]["input_ids"]]
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    return [rows[index] for index in dict.fromkeys([*range(len(lengths))[:2], *order[:1], *order[-1:]])]
