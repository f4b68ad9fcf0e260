"""The targets of ``--on``: their options are read here, and each is a module of its own."""

from __future__ import annotations

import dataclasses
import importlib
from dataclasses import dataclass
from typing import Any

from sftkit.api import ConfigError, Problem, nearest, parse_assignment, split_options
from sftkit_commands.launch import TARGETS
from sftkit_commands.launch.job import Job, Plan


@dataclass(frozen=True)
class Target:
    """A target with its options.

    Attributes:
        name: as in ``--on``.
        module: its module.
        options: its ``Options``; None if only their list is wanted.
    """

    name: str
    module: Any
    options: Any

    @property
    def wants_help(self) -> bool:
        """Whether its options are to be listed, and nothing else."""
        return self.options is None

    def plan(self, job: Job) -> Plan:
        """What the target will do with a job.

        Raises:
            ConfigError: if it cannot be done.
        """
        plan: Plan = self.module.plan(job, self.options)
        return plan


def read_target(text: str) -> Target:
    """The target of ``NAME`` or ``NAME:OPTION=VALUE,...``.

    Raises:
        ConfigError: for a name, an option or a value that is not known.
    """
    name, _, rest = text.partition(":")
    if name not in TARGETS:
        fix = nearest(name, TARGETS) or f"choose one of {', '.join(TARGETS)}"
        raise ConfigError(Problem(f"there is no target {name!r}", "sftkit launch --on", fix))
    module = importlib.import_module(f"sftkit_commands.launch.{name}")
    if rest == "help":
        return Target(name, module, None)
    given = dict(parse_assignment(part, f"--on {name}") for part in split_options(rest)) if rest else {}
    return Target(name, module, _options(name, module, given))


def _options(name: str, module: Any, given: dict[str, Any]) -> Any:
    """The ``Options`` of a target. What its ``further_options`` accepts goes into the option ``further``."""
    from pydantic import ValidationError

    known = [field.name for field in option_fields(module)]
    own = {key.replace("-", "_"): value for key, value in given.items() if key.replace("-", "_") in known}
    rest = {key: value for key, value in given.items() if key.replace("-", "_") not in known}
    if rest and hasattr(module, "further_options"):
        own["further"], rest = module.further_options(rest), {}
    if rest:
        raise ConfigError(Problem("no such option", f"--on {name}, {key}", _known(key, known)) for key in rest)
    try:
        return module.Options(**own)
    except ValidationError as error:
        raise ConfigError(
            Problem(item["msg"], f"--on {name}, {'.'.join(map(str, item['loc']))}", f"`--on {name}:help` lists them")
            for item in error.errors()
        ) from None


def _known(key: str, known: list[str]) -> str:
    return nearest(key, known) or f"its options are: {', '.join(known)}"


def option_fields(module: Any) -> list[Any]:
    """The fields of a target's options that a user can set by name."""
    return [field for field in dataclasses.fields(module.Options) if field.name != "further"]


def describe_options(module: Any) -> list[tuple[str, str, str]]:
    """Name, default and description of each option of a target."""
    from pydantic import TypeAdapter

    properties = TypeAdapter(module.Options).json_schema()["properties"]
    return [
        (field.name, _shown(properties[field.name].get("default", "")), properties[field.name]["description"])
        for field in option_fields(module)
    ]


def _shown(default: Any) -> str:
    return "" if default is None else str(default)


def complete_target(incomplete: str) -> list[tuple[str, str]]:
    """Targets, and after ``NAME:`` the options of one."""
    name, colon, rest = incomplete.partition(":")
    if not colon or name not in TARGETS:
        return [(target, what) for target, what in TARGETS.items() if target.startswith(incomplete)]
    done = rest.rpartition(",")[0]
    before = f"{name}:{done}," if done else f"{name}:"
    module = importlib.import_module(f"sftkit_commands.launch.{name}")
    found = [(f"{before}{option}=", text) for option, _, text in describe_options(module)]
    return [item for item in [*found, (f"{name}:help", "list them")] if item[0].startswith(incomplete)]
