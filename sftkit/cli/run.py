"""``sftkit run``: fine-tune a model."""

from __future__ import annotations

from typing import Annotated

import typer

from sftkit.cli.options import (
    ConfigArguments,
    DataOption,
    ModelOption,
    OutputOption,
    PluginOption,
    pipeline_from,
)

EXIT_CODES = """
Exit codes: 0 done; 1 a bug, with a traceback; 2 an error that you can fix; 3 the training failed, such as by a loss
that is NaN; 130 interrupted by Ctrl-C; 143 by SIGTERM or the deadline run.max_time: continue with --resume.
"""


def run(
    arguments: ConfigArguments = None,
    plugin: PluginOption = None,
    model: ModelOption = "",
    data: DataOption = "",
    output: OutputOption = "",
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.")] = False,
) -> None:
    """Fine-tune a model. Without a configuration, model and data: the embedded tiny ones."""
    pipeline = pipeline_from(arguments, plugin, model, data, output, resume=resume, overwrite=overwrite)

    from sftkit.run.distributed import end_process_group, is_main_process

    result = pipeline.run()
    end_process_group()
    if is_main_process():
        from sftkit.console import console, show_metrics

        screen = console()
        show_metrics(screen, result.metrics)
        ends = {
            "trained": f"saved to {result.directory}",
            "evaluated": f"no step was trained, so no model is saved; the metrics are in {result.directory}",
            "finished": f"the run in {result.directory} was finished already",
        }
        screen.print(ends[result.status], markup=False)
