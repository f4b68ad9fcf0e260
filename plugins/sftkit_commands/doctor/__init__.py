"""``sftkit doctor``: what this machine has, what works on it, and how to fix what does not."""

from __future__ import annotations

from typing import Annotated

import typer

from sftkit.api import JsonOption


def doctor(
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown for a bug report; the default in a pipe.")
    ] = False,
    network: Annotated[bool, typer.Option("--network", help="Also try to reach the hub.")] = False,
    json: JsonOption = False,
) -> None:
    """Show devices, versions, and what works here.

    The exit code is 2 if sftkit itself cannot work.

        sftkit doctor
        sftkit doctor --markdown > report.md
    """
    from sftkit.api import printing_json, show_json
    from sftkit_commands.doctor.examine import examine
    from sftkit_commands.doctor.show import as_data, as_markdown, show

    with printing_json(json):
        sections = examine(network)
    if json:
        show_json(as_data(sections))
    elif markdown or not show(sections):
        typer.echo(as_markdown(sections))
    raise typer.Exit(2 if any(section.needed and section.broken for section in sections) else 0)
