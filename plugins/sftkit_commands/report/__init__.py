"""``sftkit report``: what happened in a run, or in several, as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from sftkit.api import JsonOption, complete_runs

if TYPE_CHECKING:
    from sftkit_commands.report.reading import Run

PERIOD = 10  # seconds between two versions of a report that is watched


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Directories of runs.", autocompletion=complete_runs)
    ],
    output: Annotated[
        Optional[Path],  # noqa: UP045 (Typer reads it at run time)
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The file to write. Default: report.html in the run, or here for several runs.",
        ),
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep the report up to date until the runs have ended.")
    ] = False,
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    json: JsonOption = False,
) -> None:
    """Write an HTML report of a run, which may still go on or have failed, or a comparison of several runs.

    The report is one file, and needs neither the model nor the data:

        sftkit report runs/first --open
        sftkit report runs/first runs/second -o compared.html
    """
    import time
    import webbrowser

    from sftkit.api import console, show_json
    from sftkit_commands.report.page import write_report
    from sftkit_commands.report.reading import is_held, read_runs

    if watch:
        _wait_for(runs)
    found = read_runs(runs)
    path = _path(found, output)
    write_report(path, found, refresh=PERIOD if watch else 0)
    if not json:
        console().print(f"report written to {path}", markup=False)
    if open_:
        webbrowser.open(path.absolute().as_uri())
    while watch and any(run.status == "running" or is_held(run.directory) for run in found):
        time.sleep(PERIOD)
        found = read_runs(runs)
        write_report(path, found, refresh=PERIOD)
    if watch and not json:
        for run in found:
            console().print(f"{run.directory}: {run.status}, {run.steps:,} steps", markup=False)
    if json:
        show_json({"report": str(path), "runs": [run.summary() for run in found]})


def _wait_for(directories: list[Path]) -> None:
    """Wait until a run has begun in each of the directories, and say so."""
    import time

    from sftkit_commands.report.reading import has_begun

    waiting = [str(directory) for directory in directories if not has_begun(directory)]
    if waiting:
        typer.echo(f"waiting for a run in {', '.join(waiting)}; Ctrl-C leaves", err=True)
    while not all(has_begun(directory) for directory in directories):
        time.sleep(1)


def _path(runs: list[Run], output: Path | None) -> Path:
    """Where the report goes.

    Raises:
        ConfigError: if that is a file of somebody else's.
    """
    from sftkit.api import REPORT, ConfigError, Problem, is_report

    path = output or (runs[0].directory / REPORT if len(runs) == 1 else Path(REPORT))
    if path.is_dir():
        raise ConfigError(Problem("this is a directory", str(path), "name a file, such as report.html"))
    if path.exists() and path.stat().st_size and not is_report(path):
        fix = "remove it, or name another file with --output"
        raise ConfigError(Problem("this file is not a report, and is not replaced", str(path), fix))
    return path
