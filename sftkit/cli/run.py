"""``sftkit run``: fine-tune a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

if TYPE_CHECKING:
    from sftkit.config.source import ConfigSource


def run(
    arguments: Annotated[
        Optional[list[str]],  # noqa: UP045 (typer reads this on Python 3.10 too)
        typer.Argument(metavar="[CONFIG] [KEY=VALUE]...", help="A YAML file, then values that override it."),
    ] = None,
    plugin: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--plugin", "-p", metavar="NAME[:OPT=VALUE,...]", help="Select a plugin; no:NAME drops one. Repeatable."
        ),
    ] = None,
    model: Annotated[str, typer.Option("--model", "-m", help="Directory or hub name of the model.")] = "",
    data: Annotated[str, typer.Option("--data", "-d", help="File, glob, directory or hub name of the data.")] = "",
    output: Annotated[str, typer.Option("--output", "-o", help="Run directory.")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run that is there.")] = False,
) -> None:
    """Fine-tune a model. Without a configuration, model and data: the embedded tiny ones."""
    set_up()
    source, choices = gather(arguments or [], plugin or [], model, data, output)

    from sftkit.run.distributed import end_process_group, is_main_process
    from sftkit.run.pipeline import Pipeline

    pipeline = Pipeline(config=source, plugins=choices, resume=resume, overwrite=overwrite)
    result = pipeline.run()
    end_process_group()
    if is_main_process():
        from sftkit.console import console, show_metrics

        screen = console()
        show_metrics(screen, result.metrics)
        screen.print(f"saved to {result.directory}", markup=False)


def set_up() -> None:
    """What commands that run the user's configuration share: plain log lines, and the user's own modules."""
    import logging
    import os
    import sys

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("sftkit").setLevel(logging.INFO)
    # sftkit shows its own progress; said here, transformers need not be imported before the configuration is checked
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    sys.path.insert(0, os.getcwd())  # -p package.module:Class and data.formatting name the user's own modules


def gather(
    arguments: list[str], plugins: list[str], model: str = "", data: str = "", output: str = ""
) -> tuple[ConfigSource, list[Any]]:
    """The configuration file, the options and the overrides as one source, and the plugins chosen beside it."""
    from sftkit import demo
    from sftkit.config.source import ConfigSource, parse_assignment, read_yaml
    from sftkit.errors import ConfigError, Problem

    here = "command line"
    files = [item for item in arguments if "=" not in item]
    if len(files) > 1:
        what = f"{len(files)} configuration files: {', '.join(files)}"
        raise ConfigError(Problem(what, here, "give one, and overrides as key=value"))
    pairs = [parse_assignment(item, here) for item in arguments if "=" in item]
    keys = {key.split(".")[0] for key, _ in pairs if key in ("model", "data", "model.name", "data.train")}
    embedded = not files and not model and not data and not keys
    source = read_yaml(Path(files[0]) if files else demo.CONFIG) if files or embedded else ConfigSource()
    choices: list[Any] = list(plugins)
    for key, value in (("model.name", model), ("data.train", data), ("train.output_dir", output)):
        if value:
            pairs.insert(0, (key, value))
    for key, value in pairs:
        path = tuple(key.split("."))
        if path[0] == "plugins" and len(path) > 2:
            choices.append({path[1]: {".".join(path[2:]): value}})
        elif path in (("model",), ("data",)):
            source.set((path[0], "name" if path[0] == "model" else "train"), value, here)
        else:
            source.set(path, value, here)
    return source, choices
