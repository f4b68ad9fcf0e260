"""``sftkit check``: everything that can be known before a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sftkit.api import (
    ConfigArguments,
    DataOption,
    ModelOption,
    OutputOption,
    PluginOption,
    pipeline_from,
)

if TYPE_CHECKING:
    from rich.console import Console

    from sftkit.api import Verdict
    from sftkit_commands.check.checks import Report


def check(
    arguments: ConfigArguments = None,
    plugin: PluginOption = None,
    model: ModelOption = "",
    data: DataOption = "",
    output: OutputOption = "",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check a run before it is started: configuration, data, steps, disk, memory. Exit code 2 if it would be wrong."""
    from sftkit.api import SftkitError
    from sftkit_commands.check.checks import failed, run_checks

    try:
        report = run_checks(pipeline_from(arguments, plugin, model, data, output))
    except SftkitError as error:
        report = failed("configuration", error.problems)
    if json:
        import json as library

        typer.echo(library.dumps(report.as_dict(), default=str))
    else:
        _show(report)
    raise typer.Exit(2 if report.wrong else 0)


def _show(report: Report) -> None:
    from sftkit.api import console, show_data, show_table

    screen = console()
    if report.data:
        show_data(screen, {split: _counts(stats) for split, stats in report.data.items()})
        for split, stats in report.data.items():
            lengths = stats.get("before cutting and packing", {}).get("lengths", {})
            if lengths:
                _show_lengths(screen, split, lengths)
    if memory := report.details("memory"):
        sizes = [(name, f"{size / 1e9:.3f}") for name, size in memory["items"].items() if size]
        total = ("peak", f"{memory['total'] / 1e9:.3f}")
        show_table(screen, f"Memory on {memory['device']}", ("item", "GB"), [*sizes, total])
    rows = [(item.status, item.name, _found(item), item.fix) for item in report.verdicts]
    show_table(screen, "Checks", ("verdict", "check", "found", "fix"), rows)
    wrong = sum(verdict.status == "wrong" for verdict in report.verdicts)
    warned = sum(verdict.status == "warn" for verdict in report.verdicts)
    screen.print(f"{wrong} wrong, {warned} to look at" if wrong or warned else "nothing is wrong", markup=False)


def _found(verdict: Verdict) -> str:
    place = verdict.where if verdict.status == "wrong" else ""
    return f"{place}: {verdict.what}" if place else verdict.what


def _counts(stats: dict[str, Any]) -> dict[str, Any]:
    """The counts of a split without its notes, which have verdicts."""
    from sftkit.api import without_notes

    return {name: value for name, value in without_notes(stats).items() if not isinstance(value, dict)}


def _show_lengths(screen: Console, split: str, lengths: dict[str, int]) -> None:
    most = max(lengths.values())
    screen.print(f"\ntokens a row, {split}", style="bold", markup=False)
    for bound, number in lengths.items():
        screen.print(f"{'≤ ' + bound:>8} {'█' * max(round(40 * number / most), 1)} {number:,}", markup=False)
