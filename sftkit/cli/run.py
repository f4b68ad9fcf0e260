"""``sftkit run``: fine-tune a model."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from typer.core import TyperCommand

from sftkit.cli.common import JsonOption
from sftkit.cli.options import (
    ConfigArguments,
    DataOption,
    ModelOption,
    OutputOption,
    PluginOption,
    pipeline_from,
)

if TYPE_CHECKING:
    from sftkit.run.result import RunResult

#: Commands to try after a run, as far as they are installed.
NEXT = ("chat", "evaluate", "report")
EXIT_CODES = """
Exit codes: 0 done; 1 a bug, with a traceback; 2 an error that you can fix; 3 the training failed, such as by a loss
that is NaN; 130 interrupted by Ctrl-C; 143 by SIGTERM or the deadline run.max_time: continue with --resume.
"""


class RunCommand(TyperCommand):
    """The command ``run``, whose option ``--resume`` may have the value ``auto`` and no other.

    A value that is optional would take the next argument, such as the configuration file in ``--resume sft.yaml``.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read ``--resume auto`` as the option ``--resume-auto``."""
        read: list[str] = []
        for arg in args:
            if arg == "--resume=auto":
                read.append("--resume-auto")
            elif arg == "auto" and read[-1:] == ["--resume"]:
                read[-1] = "--resume-auto"
            else:
                read.append(arg)
        return super().parse_args(ctx, read)


def run(
    ctx: typer.Context,
    arguments: ConfigArguments = None,
    plugin: PluginOption = None,
    model: ModelOption = "",
    data: DataOption = "",
    output: OutputOption = "",
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue from the newest checkpoint; `--resume auto` begins if there is none."),
    ] = False,
    resume_auto: Annotated[bool, typer.Option("--resume-auto", hidden=True)] = False,
    allow_change: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--allow-change",
            metavar="NAME[,NAME...]",
            help="With --resume: what may have changed, such as data or train.learning_rate. Repeatable.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Fine-tune a model. Without a configuration, model and data: the embedded tiny ones.

    Every key of the configuration can follow as KEY=VALUE, and overrides the file:

        sftkit run sft.yaml -p packing train.max_steps=200
        sftkit run -m Qwen/Qwen3-0.6B -d train.jsonl -p peft
    """
    from sftkit.cli.ending import end_process_group
    from sftkit.console import printing_json, show_json, working
    from sftkit.ranks import is_main_process
    from sftkit.run.processes import Processes

    allowed = [name for names in allow_change or () for name in names.split(",")]
    mode = "auto" if resume_auto else resume
    options = {"resume": mode, "overwrite": overwrite, "allow_changes": allowed}
    quiet = not is_main_process()
    with (
        printing_json(as_json),
        Processes() as processes,
        working("reading the configuration", quiet=quiet, lines=True),
    ):
        pipeline = pipeline_from(arguments, plugin, model, data, output, **options, **(ctx.obj or {}))
        result = pipeline.run(processes)
    end_process_group()
    if quiet:
        return
    if as_json:
        directory = str(result.directory)
        values = {"directory": directory, "metrics": result.metrics, "trained": result.trained}
        show_json({"status": result.status, **values})
    else:
        _show(result)


def _show(result: RunResult) -> None:
    from sftkit.cli.commands import discover_commands
    from sftkit.console import console, output, show_metrics, show_sources

    screen = console()
    show_metrics(screen, result.metrics)
    show_sources(screen, result.trained)
    ends = {
        "trained": f"saved to {result.directory}",
        "evaluated": f"no step was trained, so no model is saved; the metrics are in {result.directory}",
        "finished": f"the run in {result.directory} was finished already",
    }
    screen.print(ends[result.status], markup=False)
    installed = discover_commands()
    following = [name for name in NEXT if name in installed]
    if output().quiet or result.status == "evaluated" or not following:
        return
    commands = [shlex.join(["sftkit", name, str(result.directory)]) for name in following]
    line = f"next: {' · '.join(commands)}"
    fits = len(line) <= screen.width or not screen.is_terminal
    screen.print(line if fits else "\n  ".join(["next:", *commands]), markup=False)
