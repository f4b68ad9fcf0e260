"""``sftkit check``: everything that can be known before a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from sftkit.cli.run import gather, set_up

if TYPE_CHECKING:
    from sftkit_commands.check.checks import Report


def check(
    arguments: Annotated[
        Optional[list[str]],  # noqa: UP045 (typer reads this on Python 3.10 too)
        typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", help="As for run."),
    ] = None,
    plugin: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--plugin", "-p", metavar="NAME[:OPT=VALUE,...]", help="As for run."),
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="Directory or hub name; no weights are read.")] = "",
    data: Annotated[str, typer.Option("--data", "-d", help="File, glob, directory or hub name of the data.")] = "",
    output: Annotated[str, typer.Option("--output", "-o", help="Run directory.")] = "",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check a run before it is started: configuration, data, steps, disk, memory. Exit code 2 if it would be wrong."""
    set_up()
    from sftkit.errors import SftkitError

    source, choices = gather(arguments or [], plugin or [], model, data, output)

    from sftkit.run.pipeline import Pipeline
    from sftkit_commands.check.checks import Report, Verdict, run_checks

    try:
        report = run_checks(Pipeline(config=source, plugins=choices))
    except SftkitError as error:
        verdicts = [Verdict("configuration", "wrong", f"{p.where}: {p.what}", p.fix) for p in error.problems]
        report = Report(verdicts, {}, None)
    if json:
        import json as library

        typer.echo(library.dumps(report.as_dict(), default=str))
    else:
        _show(report)
    raise typer.Exit(2 if report.wrong else 0)


def _show(report: Report) -> None:
    from sftkit.console import console, show_data, show_table

    screen = console()
    if report.data:
        plain = {
            split: {k: v for k, v in told.items() if not isinstance(v, dict)} for split, told in report.data.items()
        }
        show_data(screen, plain)
        for split, told in report.data.items():
            lengths = told.get("before cutting and packing", {}).get("lengths", {})
            if lengths:
                _show_lengths(screen, split, lengths)
    if report.memory:
        sizes = [(name, f"{size / 1e9:.3f}") for name, size in report.memory.items.items() if size]
        total = ("peak", f"{report.memory.total / 1e9:.3f}")
        show_table(screen, f"Memory on {report.memory.available.device}", ("item", "GB"), [*sizes, total])
    rows = [(verdict.status, verdict.name, verdict.what, verdict.fix) for verdict in report.verdicts]
    show_table(screen, "Checks", ("verdict", "check", "found", "mend"), rows)
    wrong = sum(verdict.status == "wrong" for verdict in report.verdicts)
    warned = sum(verdict.status == "warn" for verdict in report.verdicts)
    screen.print(f"{wrong} wrong, {warned} to look at" if wrong or warned else "nothing is wrong", markup=False)


def _counts(told: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in told.items() if not isinstance(value, dict)}


def _show_lengths(screen: object, split: str, lengths: dict[str, int]) -> None:
    from rich.console import Console

    assert isinstance(screen, Console)
    most = max(lengths.values())
    screen.print(f"\ntokens a row, {split}", style="bold", markup=False)
    for bound, number in lengths.items():
        screen.print(f"{'≤ ' + bound:>8} {'█' * max(round(40 * number / most), 1)} {number:,}", markup=False)
