"""``sftkit sweep``: one run for each combination of values."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from sftkit.api import DataOption, JsonOption, ModelOption, PluginOption, complete_runs


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
    output: Annotated[
        str,
        typer.Option("--output", "-o", metavar="DIR", help="Directory of the sweep.", autocompletion=complete_runs),
    ] = "",
    trials: Annotated[
        int,
        typer.Option(
            "--trials", metavar="N", min=0, help="Number of runs whose values Optuna chooses, instead of a grid."
        ),
    ] = 0,
    metric: Annotated[
        str,
        typer.Option(
            "--metric",
            metavar="NAME",
            help="Compare the runs by this metric. Default: eval_loss, or train_loss without data.eval.",
        ),
    ] = "",
    maximize: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(
            "--maximize/--minimize",
            help="Whether a larger or a smaller value is better. Default: by the name, such as smaller for a loss.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the choices of --trials.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a sweep: finished runs are kept.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and list the runs, and start none.")] = False,
    json: JsonOption = False,
) -> None:
    """Run a configuration with several values, and compare the runs.

    A value with commas, or a range with --trials, varies. The exit code is 3 if a run failed:

        sftkit sweep sft.yaml train.learning_rate=1e-5,2e-5 plugins.peft.r=8,16
        sftkit sweep sft.yaml train.learning_rate=1e-6..1e-4:log --trials 20
    """
    from sftkit.api import show_json
    from sftkit_commands.sweep.plan import Options, Plan
    from sftkit_commands.sweep.show import show_plan, show_sweep
    from sftkit_commands.sweep.space import read_space

    space = read_space(arguments or [], trials > 0)
    options = Options(plugin or [], model, data, metric, maximize, trials, seed, resume)
    plan = Plan.make(space, options, output)
    if json and dry_run:
        show_json(plan.sweep.as_dict())
    elif dry_run or not json:
        show_plan(plan.sweep, trials, space.ranges)
    if dry_run:
        return
    try:
        plan.run(quiet=json)
    finally:
        if json:
            show_json(plan.sweep.as_dict())
        else:
            show_sweep(plan.sweep)
    if any(run.status != "done" for run in plan.sweep.runs):
        raise typer.Exit(3)
