"""``sftkit plugins``: what is installed, whether it works here, and what its options are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from sftkit.cli.common import JsonOption
from sftkit.cli.completion import complete_names

if TYPE_CHECKING:
    from rich.text import Text


def plugins(
    name: Annotated[
        str, typer.Argument(help="Show one plugin with its hooks and options.", autocompletion=complete_names)
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """List the installed plugins, or document one.

    Select plugins with `sftkit run -p NAME`; hyphens and capitals in names do not matter:

        sftkit plugins
        sftkit plugins flash-attn
    """
    from sftkit.console import show_json
    from sftkit.plugin.describe import all_plugins, one_plugin

    if name:
        info = one_plugin(name)
        show_json(info) if as_json else _show_one(info)
    else:
        infos = all_plugins()
        show_json({"plugins": infos}) if as_json else _show_all(infos)


def _show_all(infos: list[dict[str, Any]]) -> None:
    from sftkit.console import console, output, show_table

    screen = console()
    rows = [(i["name"], _status(i["status"]), i["summary"].rstrip(".")) for i in infos]
    show_table(screen, "Plugins", ("name", "status", "summary"), rows)
    if not output().quiet:
        screen.print("\n`sftkit plugins NAME` shows the options of one, and what is missing.", markup=False)


def _status(status: str) -> Text:
    """The status in a word or two, since the details follow by name."""
    from rich.text import Text

    word, _, _ = status.partition(":")
    return Text(word, style={"ready": "green", "broken": "red"}.get(word, "yellow"))


def _show_one(info: dict[str, Any]) -> None:
    from rich.text import Text

    from sftkit.console import console, show_table

    screen = console()
    head = Text(f"{info['name']} {info['version']}", style="bold").append(
        f" ({info['distribution']})", style="not bold"
    )
    screen.print(head)
    status = Text(info["status"], style=_status(info["status"]).style)
    screen.print(Text("status: ").append_text(status))
    screen.print(f"hooks: {', '.join(info['hooks']) or 'none'}\n", markup=False)
    for paragraph in info["documentation"].split("\n\n"):
        lines = paragraph.splitlines()
        kept = any(line.startswith(" ") for line in lines[1:])  # such as a list with indented lines
        screen.print((paragraph if kept else " ".join(lines)) + "\n", markup=False)
    if info["options"]:
        rows = [[o["name"], o["type"], o["default"], o["description"]] for o in info["options"]]
        show_table(screen, "Options", ("option", "type", "default", "description"), rows)
    else:
        screen.print("It has no options.")
