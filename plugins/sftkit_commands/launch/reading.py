"""The command that is to be started: read as it will read itself, so that what is misspelt fails here."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftkit.api import ConfigError, Problem, config_values, hide, nearest
from sftkit_commands.launch.job import Job, job_name

_VARIABLE = re.compile(r"[A-Za-z_]\w*$")
WHERE = "sftkit launch"


@dataclass(frozen=True)
class Choices:
    """The options of the command `launch` that every target has."""

    nproc: int | None
    nnodes: int
    max_restarts: int | None
    name: str
    env: Sequence[str]
    file: str
    submit: bool
    as_json: bool


def read_job(ctx: Any, arguments: list[str], choices: Choices) -> Job:
    """The job that the arguments describe.

    Args:
        ctx: the context of the command line, which has the other commands.
        arguments: the command to start, with its own arguments.
        choices: the options of the command `launch`.

    Raises:
        ConfigError: if there is no such command, it does not take these arguments, or a number is too small.
    """
    _check_numbers(choices)
    parameters = _parse(ctx, arguments)
    files = [item for item in parameters.get("arguments") or () if Path(item).suffix in (".yaml", ".yml")]
    values: dict[str, Any] = {}
    if arguments[0] == "run":
        keys = ("arguments", "plugin", "model", "data", "output")
        values = config_values(*(parameters[key] for key in keys))
    elif (choices.nproc or 1) * choices.nnodes > 1:
        what = f"`sftkit {arguments[0]}` works in one process"
        raise ConfigError(Problem(what, WHERE, "leave out --nproc and --nnodes; only `run` shares its work"))
    train = values.get("train")
    output = train.get("output_dir") if isinstance(train, dict) else None
    resume = "auto" if parameters.get("resume_auto") else "newest" if parameters.get("resume") else ""
    return Job(
        arguments=tuple(arguments),
        nproc=choices.nproc,
        nnodes=choices.nnodes,
        max_restarts=choices.max_restarts,
        name=job_name(choices.name or (Path(files[-1]).stem if files else arguments[0])),
        output=output if isinstance(output, str) else "",
        resume=resume,
        files=tuple(files),
        values=values,
        environment=_environment(choices.env),
        made_by=hide(shlex.join(["sftkit", *sys.argv[1:]])),
        file=choices.file,
        submit=choices.submit,
        as_json=choices.as_json,
    )


def _check_numbers(choices: Choices) -> None:
    least = {"nproc": 1, "nnodes": 1, "max_restarts": 0}
    problems = [
        Problem(f"must be at least {low}, not {value}", f"{WHERE} --{name.replace('_', '-')}", "choose a larger number")
        for name, low in least.items()
        if (value := getattr(choices, name)) is not None and value < low
    ]
    if problems:
        raise ConfigError(problems)


def _parse(ctx: Any, arguments: list[str]) -> dict[str, Any]:
    """The parameters of the command, as its own parser reads them."""
    if not arguments:
        raise ConfigError(Problem("no command to start", WHERE, "name one, as in: sftkit launch run sft.yaml"))
    root = ctx.find_root()
    name, *rest = arguments
    known = [each for each in root.command.list_commands(root) if each != "launch"]
    if name not in known:
        fix = nearest(name, known) or f"name a command before its arguments, as in: sftkit launch run {name}"
        raise ConfigError(Problem(f"there is no command {name!r} to start", WHERE, fix))
    command = root.command.get_command(root, name)
    if hasattr(command, "commands"):
        return {}
    parameters: dict[str, Any] = command.make_context(name, list(rest), parent=root).params
    return parameters


def _environment(given: Sequence[str]) -> dict[str, str]:
    """The variables of ``--env``.

    Raises:
        ConfigError: if one is not of the form NAME=VALUE, or a secret.
    """
    found: dict[str, str] = {}
    problems = []
    for item in given:
        name, equals, value = item.partition("=")
        if not equals or not _VARIABLE.match(name):
            problems.append(Problem(f"{item!r} is not of the form NAME=VALUE", f"{WHERE} --env", "write NAME=VALUE"))
        elif hide(item) != item:
            fix = "secrets do not belong into job files; use what the target has (`sftkit docs scaling-out`)"
            problems.append(Problem(f"{name} is a secret", f"{WHERE} --env", fix))
        found[name] = value
    if problems:
        raise ConfigError(problems)
    return found
