"""``sftkit check-plugin``: run a plugin's hooks, and hold what they do against what the hooks promise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from sftkit.api import JsonOption, ModelOption, PluginOption


def check_plugin(
    name: Annotated[
        str, typer.Argument(metavar="NAME[:OPT=VALUE,...]", help="An installed plugin, or MODULE:CLASS, with options.")
    ],
    rows: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--rows", metavar="FILE", help="JSON lines that the plugin's formatter reads."),
    ] = None,
    plugin: PluginOption = None,
    model: ModelOption = "",
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the runs with several processes.")] = False,
    json: JsonOption = False,
) -> None:
    """Run the hooks of a plugin, and check what they do.

    Tiny models are made for it, and nothing is downloaded. The exit code is 2 if a check fails.

        sftkit check-plugin neftune:alpha=10
        sftkit check-plugin my_format:MyFormat --rows rows.jsonl
        sftkit check-plugin bitsandbytes -p peft --quick
    """
    from sftkit.api import examine_plugin, plugin_from, printing_json, show_json, working
    from sftkit_commands.check_plugin.show import as_data, read_rows, refuse_command, show

    with printing_json(json), working(f"checking plugin {name}"):
        refuse_command(name)
        chosen = plugin_from(name)
        examples = None if rows is None else read_rows(rows)
        report = examine_plugin(chosen, rows=examples, beside=plugin or (), model=model or None, quick=quick)
    if json:
        show_json(as_data(report))
    else:
        show(report)
    raise typer.Exit(2 if report.failed else 0)
