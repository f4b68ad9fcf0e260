"""Checks the optimizer that a plugin makes, on the model without weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from sftkit.api import SftkitError, UnknownMemoryError, Verdict, evaluates_only, optimizer_groups

if TYPE_CHECKING:
    from sftkit.api import PreparedRun


def optimizer_verdicts(run: PreparedRun) -> Iterator[Verdict]:
    """A verdict with the groups of weights as details; none if no plugin makes the optimizer."""
    if evaluates_only(run.config):
        return
    try:
        name, groups = optimizer_groups(run)
    except UnknownMemoryError as error:
        yield Verdict("optimizer", "ok", f"its groups of weights are not known before the model is loaded: {error}")
        return
    except SftkitError as error:
        for problem in error.problems:
            yield Verdict("optimizer", "wrong", problem.what, problem.fix, problem.where)
        return
    if groups:
        weights = f"{sum(group.weights for group in groups):,} weights in {len(groups)} groups"
        details = {"optimizer": name, "groups": [asdict(group) for group in groups]}
        yield Verdict("optimizer", "ok", f"{name} updates {weights}", details=details)
