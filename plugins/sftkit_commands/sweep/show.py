"""A sweep in the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping

import typer

from sftkit.api import console, metric_cell, metric_name, parse_value, show_table
from sftkit_commands.sweep.record import Sweep, SweepRun
from sftkit_commands.sweep.space import Range, short_keys


def show_plan(sweep: Sweep, trials: int, ranges: Mapping[str, Range]) -> None:
    """Say what will be run."""
    screen = console()
    if trials:
        screen.print(f"{trials} trials in {sweep.directory}, by {metric_name(sweep.metric)}", markup=False)
        rows = [[key, ", ".join(sweep.space["values"][key])] for key in sweep.space["values"]]
        rows += [[key, _range(each)] for key, each in ranges.items()]
        show_table(screen, "What varies", ("key", "values"), rows)
        return
    noun = "run" if len(sweep.runs) == 1 else "runs"
    screen.print(f"{len(sweep.runs)} {noun} in {sweep.directory}, by {metric_name(sweep.metric)}", markup=False)
    short = _short(sweep)
    rows = [[run.name, *map(_value, run.parameters.values()), run.status] for run in sweep.runs]
    show_table(screen, "Runs", ("run", *short.values(), "status"), rows)


def show_run(run: SweepRun, count: str, state: str, quiet: bool) -> None:
    """Announce a run.

    Args:
        run: the run.
        count: its number of how many.
        state: what is to say of it.
        quiet: whether standard output is for something else.
    """
    values = ", ".join(f"{name} {_value(run.parameters[key])}" for key, name in short_keys(run.parameters).items())
    typer.echo(f"\nrun {count}: {values} {state}".rstrip(), err=quiet)


def show_sweep(sweep: Sweep) -> None:
    """Print the runs, the best first, and what to do next."""
    screen = console()
    short = _short(sweep)
    rows = []
    for run in sweep.ranked():
        value = run.value(sweep.metric)
        shown = metric_cell(sweep.metric, "" if math.isnan(value) else value)
        rows.append([*(_value(run.parameters[key]) for key in short), shown, run.status])
    screen.print()
    show_table(screen, f"Runs in {sweep.directory}", (*short.values(), metric_name(sweep.metric), "status"), rows)
    for run in sweep.runs:
        if run.error:
            screen.print(f"{run.name}: {run.status}: {run.error}", markup=False)
    best = sweep.ranked()[0] if sweep.runs else None
    done = [run for run in sweep.runs if run.status == "done"]
    if best is not None and not math.isnan(best.value(sweep.metric)):
        screen.print(f"best: {sweep.directory / best.name}", markup=False)
    elif done:
        screen.print(f"no run has {sweep.metric}; choose --metric from: {', '.join(done[0].metrics)}", markup=False)
    if done:
        screen.print(f"compare them: sftkit report {sweep.directory}/*/", markup=False)


def _short(sweep: Sweep) -> dict[str, str]:
    return short_keys([*sweep.space["values"], *sweep.space["ranges"]])


def _value(text: str) -> str:
    """A value as it is shown: numbers that Optuna has chosen are rounded."""
    value = parse_value(text)
    return f"{value:.4g}" if isinstance(value, float) and len(text) > 10 else text


def _range(each: Range) -> str:
    kind = "whole numbers" if each.whole else "numbers"
    return f"{kind} from {each.low:g} to {each.high:g}{', log' if each.log else ''}"
