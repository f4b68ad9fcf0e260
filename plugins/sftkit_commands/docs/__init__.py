"""``sftkit docs``: the pages of the documentation, which are installed with sftkit."""

from __future__ import annotations

from typing import Annotated

import typer

from sftkit.api import JsonOption


def _topics(incomplete: str) -> list[str]:
    """The topics that begin so, for the shell."""
    from sftkit_commands.docs.pages import pages

    return [name for name in pages() if name.startswith(incomplete)]


def docs(
    topic: Annotated[
        str,
        typer.Argument(help="A page, such as packing or plugins/packing.", autocompletion=_topics),
    ] = "agents",
    listed: Annotated[bool, typer.Option("--list", help="List the topics.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Print a page of the documentation; without a topic, the one for coding agents.

    In a terminal it is rendered. In a pipe it is the Markdown file:

        sftkit docs
        sftkit docs --list
        sftkit docs packing
        sftkit docs troubleshooting | grep -A 6 "no such key"
    """
    from sftkit.api import show_json
    from sftkit_commands.docs.pages import find, pages, title
    from sftkit_commands.docs.show import show, show_list

    if listed:
        titles = {name: title(path) for name, path in pages().items()}
        if as_json:
            show_json({"topics": [{"topic": name, "title": text} for name, text in titles.items()]})
        else:
            show_list(titles)
        return
    name, path = find(topic)
    text = path.read_text(encoding="utf-8")
    show_json({"topic": name, "title": title(path), "text": text}) if as_json else show(text)
