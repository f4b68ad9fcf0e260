"""What commands share that take a run: their arguments, and the `Pipeline` that these describe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, TypeAlias

import typer

from sftkit.cli.completion import complete_config, complete_plugins, complete_runs

if TYPE_CHECKING:
    from sftkit.config.source import ConfigSource
    from sftkit.run.pipeline import Pipeline

# Optional[...] and not `| None`: Typer reads these on Python 3.10 too.
ConfigArguments: TypeAlias = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(
        metavar="[CONFIG]... [KEY=VALUE]...",
        help="YAML files, later ones override earlier ones, and values that override them.",
        autocompletion=complete_config,
    ),
]
PluginOption: TypeAlias = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option(
        "--plugin",
        "-p",
        metavar="NAME[:OPT=VALUE,...]",
        help="Select a plugin; no:NAME drops one. Repeatable.",
        autocompletion=complete_plugins,
    ),
]
ModelOption: TypeAlias = Annotated[
    str, typer.Option("--model", "-m", metavar="NAME", help="Directory or hub name of the model.")
]
DataOption: TypeAlias = Annotated[
    str, typer.Option("--data", "-d", metavar="NAME", help="File, glob, directory or hub name of the data.")
]
RunArgument: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="RUN_OR_MODEL",
        help="A run, a checkpoint, a directory with a model, or a hub name.",
        autocompletion=complete_runs,
    ),
]
OutputOption: TypeAlias = Annotated[
    str, typer.Option("--output", "-o", metavar="DIR", help="Run directory.", autocompletion=complete_runs)
]
DeviceOption: TypeAlias = Annotated[
    str, typer.Option("--device", metavar="NAME", help="Where to load the model, such as cpu or cuda:1.")
]
DTypeOption: TypeAlias = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="NAME",
        help="Type of the weights: auto, float32, bfloat16 or float16. Default: that of the run.",
    ),
]
TrustOption: TypeAlias = Annotated[
    bool, typer.Option("--trust-remote-code", help="Allow running Python code that comes with the model.")
]


def pipeline_from(
    arguments: list[str] | None = None,
    plugins: list[str] | None = None,
    model: str = "",
    data: str = "",
    output: str = "",
    **options: Any,
) -> Pipeline:
    """The run that a command's arguments describe; without any, the embedded one.

    Args:
        arguments: YAML files, and ``key=value`` overrides.
        plugins: the value of ``--plugin``.
        model: the value of ``--model``.
        data: the value of ``--data``.
        output: the value of ``--output``.
        options: further arguments of `Pipeline`.

    Raises:
        ConfigError: if the file or an argument cannot be read.
    """
    from sftkit.cli.process import leave_lines_to_main_process
    from sftkit.ranks import is_main_process

    if not is_main_process():
        leave_lines_to_main_process()
    source, choices = gather(arguments or [], plugins or [], model, data, output)

    from sftkit.run.pipeline import Pipeline

    return Pipeline(config=source, plugins=choices, **options)


def config_values(
    arguments: list[str] | None = None,
    plugins: list[str] | None = None,
    model: str = "",
    data: str = "",
    output: str = "",
) -> dict[str, Any]:
    """What files and overrides set, by section, as it is written: nothing of it is checked, and no library loaded.

    Raises:
        ConfigError: if a file or an argument cannot be read.
    """
    return gather(arguments or [], plugins or [], model, data, output)[0].values


def gather(
    arguments: list[str], plugins: list[str], model: str = "", data: str = "", output: str = ""
) -> tuple[ConfigSource, list[Any]]:
    """The configuration files, the options and the overrides as one source, and the plugins chosen besides."""
    from sftkit import demo
    from sftkit.config.assignments import parse_assignment
    from sftkit.config.source import COMMAND_LINE, ConfigSource, read_yaml

    files = [item for item in arguments if is_file(item)]
    pairs = [parse_assignment(item, COMMAND_LINE.text) for item in arguments if not is_file(item)]
    keys = {key.split(".")[0] for key, _ in pairs if key in ("model", "data", "model.name", "data.train")}
    embedded = not files and not model and not data and not keys
    source = ConfigSource()
    for file in [demo.CONFIG] if embedded else map(Path, files):
        source.merge(read_yaml(file))
    choices: list[Any] = list(plugins)
    for key, value in (("model.name", model), ("data.train", data), ("train.output_dir", output)):
        if value:
            pairs.insert(0, (key, value))
    for key, value in pairs:
        path = tuple(key.split("."))
        if path[0] == "plugins" and len(path) > 1:
            choices.append({path[1]: {".".join(path[2:]): value} if path[2:] else value})
        elif path in (("model",), ("data",)):
            source.set((path[0], "name" if path[0] == "model" else "train"), value, COMMAND_LINE)
        else:
            source.set(path, value, COMMAND_LINE)
    return source, choices


def is_file(argument: str) -> bool:
    """Whether an argument is a configuration file, and not ``key=value``."""
    return "=" not in argument or (argument.endswith((".yaml", ".yml")) and Path(argument).is_file())
