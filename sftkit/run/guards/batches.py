"""The collator of a run is tried on each split before weights are loaded."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

from sftkit.answers import keep, parts_of_run, recall
from sftkit.errors import SftkitError
from sftkit.run.verdict import Verdict

if TYPE_CHECKING:
    from sftkit.run.stages import PreparedRun

TRIED = "a batch of a collator"
FIRST = 64  # rows of which the shortest and the longest are in the batch, so that there is padding
MOST = 4  # rows of the batch


def collator_verdicts(run: PreparedRun) -> list[Verdict]:
    """Make a batch of a few rows of each split, and compare it with them.

    Returns:
        A verdict on each problem of the first batch that does not keep the contract of collators.

    Raises:
        HookError: if the collator of a plugin fails.
    """
    parts = _parts(run)
    if parts is not None and recall(TRIED, parts) == []:
        return []
    try:
        for rows in run.data.splits.values():
            if examples := _some(rows):
                run.collator.try_on(examples)
        if parts is not None and not run.collator.fewer:
            keep(TRIED, parts, [])
    except SftkitError as error:
        return [Verdict("collator", "wrong", each.what, each.fix, each.where) for each in error.problems]
    return []


def _parts(run: PreparedRun) -> dict[str, Any] | None:
    """What the batches depend on; None if they are made each time."""
    if run.vocabulary.processor is not None or not run.collator.plugin or "train" not in run.data.described:
        return None
    if (parts := parts_of_run(run.config, run.plugins)) is None:
        return None
    special = (run.tokenizer.pad_token_id, run.tokenizer.eos_token_id, len(run.tokenizer))
    return {**parts, "rows": run.data.described, "special": special}


def _some(rows: Any) -> list[dict[str, Any]]:
    """The first two rows, and the shortest and the longest of the first ones."""
    if not hasattr(rows, "column_names"):
        return [*islice(iter(rows), MOST)]
    lengths = [len(ids) for ids in rows[:FIRST]["input_ids"]]
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    return [rows[index] for index in dict.fromkeys([*range(len(lengths))[:2], *order[:1], *order[-1:]])]
