"""Everything that can be known of a run before time is spent on it, as verdicts with their mend."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from sftkit.api import Problem, SftkitError
from sftkit_commands.check.data import data_verdicts
from sftkit_commands.check.disk import disk_verdicts
from sftkit_commands.check.memory import memory_verdicts
from sftkit_commands.check.plan import Plan, plan_of, plan_verdicts
from sftkit_commands.check.verdict import Verdict

if TYPE_CHECKING:
    from sftkit.api import MemoryEstimate, Pipeline, PreparedRun

__all__ = ["Plan", "Report", "Verdict", "failed", "run_checks"]


class Report:
    """What the checks found.

    Attributes:
        verdicts: one a check, in the order in which a run would meet them.
        data: counts of each split; empty where the data could not be prepared.
        plan: steps and tokens of the run, if they can be known.
        memory: the peak of the run's memory, if it can be known.
    """

    def __init__(
        self, verdicts: list[Verdict], data: dict[str, Any], plan: Plan | None, memory: MemoryEstimate | None = None
    ) -> None:
        self.verdicts, self.data, self.plan, self.memory = verdicts, data, plan, memory

    @property
    def wrong(self) -> bool:
        """Whether the run would be wrong."""
        return any(verdict.status == "wrong" for verdict in self.verdicts)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        return {
            "wrong": self.wrong,
            "verdicts": [vars(verdict) for verdict in self.verdicts],
            "data": self.data,
            "plan": vars(self.plan) if self.plan else None,
            "memory": self.memory.as_dict() if self.memory else None,
        }


def run_checks(pipeline: Pipeline) -> Report:
    """Check a run: its configuration, then its data, then what it would take."""
    if problems := pipeline.check():
        return failed("configuration", problems)
    verdicts = [Verdict("configuration", "ok", "every key, plugin and option is known")]
    try:
        prepared = pipeline.prepare()
    except SftkitError as error:
        return Report([*verdicts, *(_wrong("data", problem) for problem in error.problems)], {}, None)
    plan = plan_of(prepared)
    verdicts += _of_run(prepared, plan)
    of_memory, memory = memory_verdicts(prepared)
    verdicts += of_memory
    data = prepared.data.summary()
    for split, stats in prepared.data.stats.items():
        data[split] = {**data[split], "before cutting and packing": stats.as_dict()}
    return Report(verdicts, data, plan, memory)


def failed(name: str, problems: Iterable[Problem]) -> Report:
    """The report of a run that cannot be checked any further."""
    return Report([_wrong(name, problem) for problem in problems], {}, None)


def _of_run(prepared: PreparedRun, plan: Plan) -> Iterator[Verdict]:
    yield from data_verdicts(prepared)
    yield from plan_verdicts(prepared, plan)
    yield from disk_verdicts(prepared)


def _wrong(name: str, problem: Problem) -> Verdict:
    return Verdict(name, "wrong", f"{problem.where}: {problem.what}", problem.fix)
