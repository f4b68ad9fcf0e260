"""What `sftkit check` finds: the problems of a configuration, or the verdicts on the prepared run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from sftkit.api import Problem, SftkitError, Verdict

if TYPE_CHECKING:
    from sftkit.api import Pipeline


@dataclass(frozen=True)
class Report:
    """What the checks found.

    Attributes:
        verdicts: one per check, in the order in which a run would meet them.
        data: counts of each split; empty where the data could not be prepared.
    """

    verdicts: list[Verdict]
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def wrong(self) -> bool:
        """Whether the run would be wrong."""
        return any(verdict.status == "wrong" for verdict in self.verdicts)

    def details(self, name: str) -> dict[str, Any]:
        """The figures of the check of this name; empty where it has none."""
        return next((dict(item.details) for item in self.verdicts if item.name == name and item.details), {})

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        return {"wrong": self.wrong, "verdicts": [asdict(item) for item in self.verdicts], "data": self.data}


def run_checks(pipeline: Pipeline) -> Report:
    """Check a run: its configuration, then its data, then what it would take."""
    if problems := pipeline.check():
        return failed("configuration", problems)
    verdicts = [Verdict("configuration", "ok", "every key, plugin and option is known")]
    try:
        run = pipeline.prepare()
    except SftkitError as error:
        return Report([*verdicts, *failed("data", error.problems).verdicts])
    data = run.data.summary()
    for split, stats in run.data.stats.items():
        data[split] = {**data[split], "before cutting and packing": stats.as_dict()}
    return Report([*verdicts, *run.verdicts()], data)


def failed(name: str, problems: Iterable[Problem]) -> Report:
    """The report of a run that cannot be checked any further."""
    return Report([Verdict(name, "wrong", problem.what, problem.fix, problem.where) for problem in problems])
