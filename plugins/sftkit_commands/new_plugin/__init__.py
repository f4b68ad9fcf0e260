"""``sftkit new-plugin``: the project of a plugin, whose tests pass at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from sftkit.api import JsonOption
from sftkit_commands.new_plugin.kinds import KINDS, chosen_kind

if TYPE_CHECKING:
    from sftkit_commands.new_plugin.project import Project


def complete_kinds(incomplete: str) -> list[str]:
    """The kinds that begin with a text, for the shell's completion."""
    return [name for name in KINDS if name.startswith(incomplete)]


def new_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the plugin, such as word-noise.")],
    kind: Annotated[
        str,
        typer.Option(
            "--kind", "-k", metavar="KIND", help=f"What it does: {', '.join(KINDS)}.", autocompletion=complete_kinds
        ),
    ],
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
    from sftkit_commands.new_plugin.names import Names
    from sftkit_commands.new_plugin.project import Project

    chosen = chosen_kind(kind)
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
