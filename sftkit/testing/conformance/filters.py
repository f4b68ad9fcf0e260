"""A filter decides on each row of the data, whatever comes at a time."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from sftkit.testing.conformance.checks import check, require, skip

if TYPE_CHECKING:
    from sftkit.testing.conformance.workbench import Workbench


def _decisions(bench: Workbench, at_once: int) -> list[Any]:
    """The decision of a fresh filter on each row, of which so many come at a time; the last row repeats the first."""
    import json
    from pathlib import Path

    from datasets import Dataset

    lines = Path(bench.data["train"]).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in [*lines, lines[0]]]
    dataset = Dataset.from_list(rows)
    decide = bench.own("filter_rows", columns=dataset.features, config=bench.config)
    if decide is None:
        skip("it has no filter for the kit's run")
    if getattr(decide, "reads_held_out", False):
        decide.see_held_out("eval", Dataset.from_list(rows[:2])[:])
    found: list[Any] = []
    for low in range(0, len(rows), at_once):
        columns = {name: list(values) for name, values in dataset[low : low + at_once].items()}
        given = copy.deepcopy(columns)
        decided = list(decide(given))
        size = len(next(iter(columns.values())))
        require(len(decided) == size, f"{size} rows have {len(decided)} decisions", "return one for each row")
        require(given == columns, "it changes the rows that it gets", "copy what you change")
        found += decided
    return found


@check("filter_rows")
def one_decision_a_row(bench: Workbench, hook: str) -> None:
    """Each row is kept, or dropped with a reason"""
    from sftkit.data.documents import Skipped

    for number, decision in enumerate(_decisions(bench, 100), 1):
        right = decision is None or (isinstance(decision, Skipped) and decision.reason)
        require(right, f"the decision on row {number} is {decision!r:.80}", "return None, or Skipped with a reason")


@check("filter_rows")
def rows_at_a_time(bench: Workbench, hook: str) -> None:
    """How many rows come at a time does not matter"""
    reasons = [[getattr(each, "reason", each) for each in _decisions(bench, at_once)] for at_once in (100, 1, 3)]
    fix = "keep what a decision needs of earlier rows in the filter, and not of a batch"
    require(reasons[0] == reasons[1] == reasons[2], "other rows are dropped when they come one by one", fix)
