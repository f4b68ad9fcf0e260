"""``sftkit doctor``: what this machine has, what works on it, and how to fix what does not."""

from __future__ import annotations

from typing import Annotated

import typer


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print Markdown, as for a bug report; the default in a pipe.")
    ] = False,
    network: Annotated[bool, typer.Option("--network", help="Also try to reach the hub.")] = False,
) -> None:
    """Show devices, versions, and what works here. Exit code 2 if sftkit itself cannot work."""
    from sftkit_commands.doctor.examine import examine
    from sftkit_commands.doctor.show import as_data, as_markdown, show

    sections = examine(network)
    if json:
        import json as library

        typer.echo(library.dumps(as_data(sections), indent=2))
    elif markdown or not show(sections):
        typer.echo(as_markdown(sections))
    raise typer.Exit(2 if any(section.needed and section.broken for section in sections) else 0)
