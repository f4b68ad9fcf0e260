"""``sftkit new-plugin``: the project of a plugin, whose tests pass at once."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from sftkit.api import JsonOption

if TYPE_CHECKING:
    from sftkit_commands.new_plugin.project import Project


class KindName(str, Enum):
    """What a new plugin does, in the order in which a run comes to it."""

    check = "check"
    engine = "engine"
    loader = "loader"
    filter = "filter"
    formatter = "formatter"
    packer = "packer"
    collator = "collator"
    kernel = "kernel"
    adapter = "adapter"
    loss = "loss"
    optimizer = "optimizer"
    noise = "noise"
    callback = "callback"
    metric = "metric"
    export = "export"
    command = "command"


def new_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the plugin, such as word-noise.")],
    kind: Annotated[KindName, typer.Option("--kind", "-k", help="What it does. Any plugin may fill further hooks.")],
    to: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--to", metavar="DIR", help="Directory of the project, new or empty. Default: sftkit-NAME."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write the project of a new plugin: code, tests that pass at once, and what publishing needs.

    It has a small technique of its kind, which you replace by yours:

        sftkit new-plugin word-noise --kind noise
        cd sftkit-word-noise
        pip install -e ".[dev]" && pytest
    """
    from sftkit.api import show_json
    from sftkit_commands.new_plugin.kinds import KINDS
    from sftkit_commands.new_plugin.names import Names
    from sftkit_commands.new_plugin.project import Project

    chosen = KINDS[kind.value]
    names = Names.of(name, command=chosen.is_command)
    project = Project(names, chosen, to or Path(names.distribution))
    files = project.write()
    if json:
        show_json({"directory": str(project.directory), "files": files, "next": project.next_commands()})
    else:
        _show(project, files)


def _show(project: Project, files: list[str]) -> None:
    """Say what was written, and what comes next."""
    from sftkit.api import console

    screen = console()
    screen.print(f"\nwritten: {project.directory}", style="bold", markup=False)
    for name in files:
        screen.print(f"  {name}", markup=False)
    screen.print("\nnext:", markup=False)
    steps = {f"cd {project.directory}": "", **project.next_commands()}
    width = max(map(len, steps))
    for command, what in steps.items():
        screen.print(f"  {command:<{width}}  {what}".rstrip(), markup=False)
    screen.print("\nChoose a license before you publish; README.md says how.", markup=False)
