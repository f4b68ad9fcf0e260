"""Whether the held-out rows of a prepared run can be completed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sftkit.data.counts import Counts
from sftkit.errors import DataError, Problem
from sftkit.training.completions import HeldOut

if TYPE_CHECKING:
    from sftkit.run.stages import PreparedRun


def completion_problems(run: PreparedRun, rows: int | None, sets: Iterable[str]) -> list[Problem]:
    """Why evaluation sets cannot be completed: documents that are cut by packing, images, nothing to complete.

    Args:
        run: the prepared run.
        rows: how many rows of each set are completed; None for all.
        sets: the names of the sets.
    """
    problems = []
    for name in sets:
        where = "data.eval" if name == "eval" else f"data.eval.{name}"
        packer = run.plugins.hook.make_packer(split=name, config=run.config, counts=Counts())
        if packer is not None and packer.cuts_documents:
            what = "rows in which documents are cut are not completed, since prompts may be incomplete"
            problems.append(Problem(what, where, "pack evaluation data as whole documents, or leave it unpacked"))
            continue
        try:
            HeldOut.of(run.data.each_row(name), rows, where)
        except DataError as error:
            problems += error.problems
    return problems
