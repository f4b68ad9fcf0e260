"""``sftkit launch``: a command in several processes, on this machine or on a cluster."""

from __future__ import annotations

import logging
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperCommand

from sftkit.api import JsonOption, complete_arguments

logger = logging.getLogger("sftkit")
TARGETS = {
    "local": "the GPUs of this machine",
    "ray": "a Ray cluster",
    "slurm": "a batch script for Slurm",
    "kubernetes": "a Kubeflow TrainJob or a JobSet",
    "skypilot": "a task of SkyPilot",
}


class LaunchCommand(TyperCommand):
    """Options come before the command that is started; all that follows belongs to that command."""

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Candidates for the command's own arguments, once it is named."""
        words = ctx.params.get("arguments")
        return complete_arguments(ctx, words, incomplete) if words else super().shell_complete(ctx, incomplete)


def _complete_target(incomplete: str) -> list[tuple[str, str]]:
    from sftkit_commands.launch.targets import complete_target

    return complete_target(incomplete)


def _complete_command(ctx: typer.Context, incomplete: str) -> list[Any]:
    """The command, and then its own arguments."""
    if words := ctx.params.get("arguments"):
        return [(item.value, item.help or "") for item in complete_arguments(ctx, words, incomplete)]
    root: Any = ctx.find_root().command
    return [name for name in root.list_commands(ctx) if name != "launch" and name.startswith(incomplete)]


launch = typer.Typer(add_completion=False)


@launch.command(cls=LaunchCommand, context_settings={"allow_interspersed_args": False})
def _launch(
    ctx: typer.Context,
    arguments: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            metavar="COMMAND [ARGUMENTS]...",
            help="The command of sftkit to start, with its own arguments and options: run sft.yaml -p packing.",
            autocompletion=_complete_command,
        ),
    ] = None,
    on: Annotated[
        str,
        typer.Option(
            "--on",
            metavar="TARGET[:OPT=VALUE,...]",
            help=f"Where: {', '.join(f'{name} ({what})' for name, what in TARGETS.items())}.",
            autocompletion=_complete_target,
        ),
    ] = "local",
    nproc: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--nproc", metavar="N", help="Processes on each node. Default on this machine: one for each GPU."),
    ] = None,
    nnodes: Annotated[int, typer.Option("--nnodes", metavar="M", help="Number of nodes.")] = 1,
    max_restarts: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--max-restarts", metavar="N", help="How often what fails is started again, and resumes."),
    ] = None,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="Name of the job. Default: by the configuration file.")
    ] = "",
    env: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--env", metavar="NAME=VALUE", help="A variable for every process, no secret. Repeatable."),
    ] = None,
    file: Annotated[
        str, typer.Option("--file", metavar="FILE", help="Where to write the file of the job. Default: by its name.")
    ] = "",
    submit: Annotated[bool, typer.Option("--submit", help="Submit that file, too.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the command or the file, and start and write nothing.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Start a command in several processes, on this machine or on a cluster.

    Options of `launch` come before the command, the command's own after it:

        sftkit launch run sft.yaml
        sftkit launch --nproc 2 run sft.yaml -p packing
        sftkit launch --on slurm:partition=gpu,time=12:00:00 --nnodes 4 --nproc 8 run sft.yaml

    `--on TARGET:help` lists the options of a target.
    """
    from sftkit_commands.launch.reading import Choices, read_job
    from sftkit_commands.launch.show import show_options, show_plan, start_plan
    from sftkit_commands.launch.targets import read_target

    target = read_target(on)
    if target.wants_help:
        show_options(target, as_json=json)
        return
    chosen = Choices(nproc, nnodes, max_restarts, name, env or [], file, submit, json)
    plan = target.plan(read_job(ctx, arguments or [], chosen))
    for note in plan.notes:
        logger.info(note)
    if dry_run:
        show_plan(plan, as_json=json)
    elif code := start_plan(plan, as_json=json):
        raise typer.Exit(code)
