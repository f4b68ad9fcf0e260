"""Checks a prepared run: its data, steps and optimizer, and the disk space and memory that it needs."""

from __future__ import annotations

from collections.abc import Iterator

from sftkit.api import Plugin, PreparedRun, Verdict, dataclass, hookimpl


@dataclass(frozen=True, kw_only=True)
class Checks(Plugin):
    """Checks the data, steps, optimizer, disk space and memory before weights are loaded (default)."""

    @hookimpl
    def check_prepared(self, run: PreparedRun) -> Iterator[Verdict]:
        """Verdicts on the data, the steps, the optimizer, the disk space and the memory, in this order."""
        from sftkit_plugins.checks.data import data_verdicts
        from sftkit_plugins.checks.disk import disk_verdicts
        from sftkit_plugins.checks.memory import memory_verdicts
        from sftkit_plugins.checks.optimizer import optimizer_verdicts
        from sftkit_plugins.checks.plan import plan_of, plan_verdicts

        yield from data_verdicts(run)
        plan = plan_of(run)
        yield from plan_verdicts(run, plan)
        optimizer = list(optimizer_verdicts(run))
        yield from optimizer
        yield from disk_verdicts(run, plan)
        if all(verdict.status == "ok" for verdict in optimizer):  # else its problem would be found again
            yield from memory_verdicts(run)
