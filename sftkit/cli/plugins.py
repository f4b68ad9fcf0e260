"""``sftkit plugins``: what is installed, whether it works here, and what its options are."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from sftkit.cli.completion import complete_names


def plugins(
    name: Annotated[str, typer.Argument(help="Show one plugin with its options.", autocompletion=complete_names)] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the installed plugins, or document one."""
    import json

    from sftkit.plugin.describe import all_plugins, one_plugin

    if name:
        info = one_plugin(name)
        typer.echo(json.dumps(info, indent=2)) if as_json else _show_one(info)
    else:
        infos = all_plugins()
        typer.echo(json.dumps(infos, indent=2)) if as_json else _show_all(infos)


def _show_all(infos: list[dict[str, Any]]) -> None:
    from sftkit.console import console, show_table

    columns = ("name", "version", "distribution", "status", "hooks", "summary")
    rows = [[", ".join(i[c]) if c == "hooks" else i[c] for c in columns] for i in infos]
    show_table(console(), "Plugins", columns, rows)


def _show_one(info: dict[str, Any]) -> None:
    from sftkit.console import console, show_table

    screen = console()
    screen.print(f"{info['name']} {info['version']} ({info['distribution']}) · {info['status']}", markup=False)
    screen.print(f"\n{info['documentation']}\n", markup=False)
    screen.print(f"hooks: {', '.join(info['hooks']) or 'none'}\n", markup=False)
    if info["options"]:
        rows = [[o["name"], o["type"], o["default"], o["description"]] for o in info["options"]]
        show_table(screen, "Options", ("option", "type", "default", "description"), rows)
    else:
        screen.print("It has no options.")
