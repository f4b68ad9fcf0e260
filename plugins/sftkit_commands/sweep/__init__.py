"""``sftkit sweep``: one run for each combination of values."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from sftkit.api import DataOption, ModelOption, OutputOption, PluginOption


def sweep(
    arguments: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            metavar="[CONFIG]... [KEY=VALUE,VALUE...]...",
            help="YAML files, values that override them, and what varies: values separated by commas, or with "
            "--trials ranges such as 1e-6..1e-4:log.",
        ),
    ] = None,
    plugin: PluginOption = None,
    model: ModelOption = "",
    data: DataOption = "",
    output: OutputOption = "",
    trials: Annotated[
        int, typer.Option("--trials", min=0, help="Number of runs that Optuna chooses, instead of the whole grid.")
    ] = 0,
    metric: Annotated[
        str,
        typer.Option("--metric", help="Compare by this; default: eval_loss, or train_loss without data.eval."),
    ] = "",
    maximize: Annotated[bool, typer.Option("--maximize", help="A larger metric is better.")] = False,
    seed: Annotated[int, typer.Option("--seed", help="Seed of what --trials chooses.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a sweep: finished runs are kept.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and list the runs, and start none.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object; the rest goes to stderr.")] = False,
) -> None:
    """Run a configuration with several values, and compare the runs. Exit code 3 if a run failed."""
    from sftkit_commands.sweep.plan import Options, Plan
    from sftkit_commands.sweep.show import show_plan, show_sweep
    from sftkit_commands.sweep.space import read_space

    space = read_space(arguments or [], trials > 0)
    options = Options(plugin or [], model, data, metric, maximize, trials, seed, resume)
    plan = Plan.make(space, options, output)
    if json and dry_run:
        _print(plan.sweep.as_dict())
    elif dry_run or not json:
        show_plan(plan.sweep, trials, space.ranges)
    if dry_run:
        return
    try:
        plan.run(quiet=json)
    finally:
        if json:
            _print(plan.sweep.as_dict())
        else:
            show_sweep(plan.sweep)
    if any(run.status != "done" for run in plan.sweep.runs):
        raise typer.Exit(3)


def _print(values: dict[str, Any]) -> None:
    import json

    typer.echo(json.dumps(values))
