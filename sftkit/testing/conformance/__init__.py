"""Checks that run a plugin's hooks, and hold what they do against what the hooks promise.

Each module has the checks of one subject: functions marked with `check`, which try one property each. What a run itself
checks in every run is not repeated here; what is too slow for that, or needs a comparison, is.
"""

from __future__ import annotations

import importlib
import tempfile
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sftkit.console import stage
from sftkit.plugin.base import Plugin
from sftkit.plugin.calls import hook_names, hooks_filled
from sftkit.testing.conformance.checks import IMPORT, LEFT_OUT, PLUGIN, RUN, Check, CheckResult, PluginReport
from sftkit.testing.conformance.declared import can_be_selected
from sftkit.testing.conformance.workbench import Workbench, quietly
from sftkit.testing.processes import warm_processes

__all__ = ["CheckResult", "PluginReport", "all_checks", "check_plugin", "examine_plugin"]

#: The modules with checks, in the order in which they are made.
SUBJECTS = (
    "declared",
    "pickling",
    "reports",
    "loading",
    "formatters",
    "filters",
    "tokenizing",
    "packers",
    "collators",
    "kernels",
    "adapters",
    "losses",
    "optimizers",
    "contexts",
    "exports",
    "runs",
)


def all_checks() -> Iterator[Check]:
    """Every check there is."""
    for name in SUBJECTS:
        module = importlib.import_module(f"{__name__}.{name}")
        yield from (value for value in vars(module).values() if isinstance(value, Check))


def check_plugin(
    plugin: Plugin,
    *,
    rows: Sequence[Mapping[str, Any]] | None = None,
    beside: Sequence[str | Plugin] = (),
    model: str | Path | None = None,
    quick: bool = False,
    without: Collection[str] = (),
) -> PluginReport:
    """Make every check that applies to a plugin; see ``docs/testing-plugins.md``.

    Args:
        plugin: with its required options.
        rows: rows that the plugin's formatter reads; by default some of each common format.
        beside: plugins that it needs, as for `Pipeline`.
        model: directory of a small model that it needs; by default tiny ones are made.
        quick: leave out the runs with several processes.
        without: subjects to leave out: hooks, ``import`` (in a fresh interpreter) or ``run`` (all real runs).

    Returns:
        The checks that were passed, and those that were skipped with the reasons. A warning names each hook of
        which no check could be made.

    Raises:
        AssertionError: lists every failed check with the hook, what is wrong and how to fix it.

    Example:
        >>> check_plugin(GaussianNoise(scale=0.1))  # doctest: +SKIP
    """
    report = examine_plugin(plugin, rows=rows, beside=beside, model=model, quick=quick, without=without)
    if report.failed:
        raise AssertionError(str(report))
    for hook, reasons in report.unchecked.items():
        warnings.warn(f"plugin {report.plugin}: nothing of {hook} was checked: {reasons}", stacklevel=2)
    return report


def examine_plugin(
    plugin: Plugin,
    *,
    rows: Sequence[Mapping[str, Any]] | None = None,
    beside: Sequence[str | Plugin] = (),
    model: str | Path | None = None,
    quick: bool = False,
    without: Collection[str] = (),
) -> PluginReport:
    """As `check_plugin`, but returns the report also if checks fail."""
    plugin_hooks = hooks_filled(type(plugin))
    results: list[CheckResult] = []
    with tempfile.TemporaryDirectory(prefix="sftkit-check-", ignore_cleanup_errors=True) as folder:
        directory = Path(folder)
        with quietly(directory / "cache"):
            bench = Workbench(plugin, directory, rows, beside, model)
            if not quick and RUN not in without and not bench.missing:
                warm_processes(now=True)  # they import what they need while the other checks are made
            for each in all_checks():
                for subject in each.subjects(plugin_hooks):
                    stage(f"{subject}: {each.title}")
                    results.append(_result(bench, each, subject, results, quick, without))
    order = [PLUGIN, IMPORT, *hook_names(), RUN]
    return PluginReport(bench.name, tuple(sorted(results, key=lambda result: order.index(result.subject))))


def _result(
    bench: Workbench, each: Check, subject: str, earlier: list[CheckResult], quick: bool, without: Collection[str]
) -> CheckResult:
    """The result of a check, or why it is not made."""
    if subject in without:
        reason = LEFT_OUT
    elif each.declared:
        reason = ""
    elif any(result.status == "failed" and result.check == can_be_selected.title for result in earlier):
        reason = "the plugin cannot be selected"
    elif each.processes and quick:
        reason = "runs with several processes are left out (--quick)"
    elif not each.anywhere and (fault := bench.fault(subject)):
        return CheckResult(subject, each.title, "failed", fault.what, fault.fix)
    else:
        reason = bench.missing or ("" if each.anywhere else bench.obstacle)
    return CheckResult(subject, each.title, "skipped", reason) if reason else each.made(bench, subject)
