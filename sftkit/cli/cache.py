"""``sftkit cache``: the prepared data that is kept on disk."""

from __future__ import annotations

from typing import Annotated

import typer

from sftkit.cli.common import JsonOption

app = typer.Typer(help="List or clear the prepared data that is kept on disk.", no_args_is_help=True)


@app.command("list")
def list_entries(as_json: JsonOption = False) -> None:
    """List the kept data: when it was made, its rows, its size and its source."""
    from datetime import datetime

    from sftkit.console import console, show_json, show_table
    from sftkit.data import cache
    from sftkit.storage import cache_directory
    from sftkit.units import size_text

    entries = []
    for entry in cache.entries():
        summary, parts = entry.info.get("summary", {}), entry.info.get("parts", {})
        made = datetime.fromtimestamp(entry.info.get("created", 0)).isoformat(" ", "minutes")
        described = {"made": made, "key": entry.directory.name[:8], "split": parts.get("split", "")}
        entries.append(
            {
                **described,
                "rows": summary.get("rows", 0),
                "bytes": entry.size,
                "source": _source(entry.info.get("names", [])),
            }
        )
    if as_json:
        show_json({"directory": str(cache_directory()), "entries": entries})
        return
    rows = [[*entry.values()] for entry in entries]
    for row in rows:
        row[4] = size_text(row[4])
    screen, columns = console(), ("made", "key", "split", "rows", "size", "source")
    if rows:
        show_table(screen, f"Prepared data in {cache_directory()}", columns, rows)
    else:
        screen.print(f"no prepared data in {cache_directory()}", markup=False)


@app.command("clear")
def clear(
    older_than: Annotated[
        float, typer.Option("--older-than", min=0, metavar="DAYS", help="Remove only data that is older.")
    ] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Remove the kept data, except what another process is preparing."""
    from sftkit.console import console, show_json
    from sftkit.data import cache
    from sftkit.units import size_text

    number, size = cache.clear(older_than * 86_400)
    if as_json:
        show_json({"removed": number, "bytes": size})
    else:
        console().print(f"removed {number} entries, {size_text(size)}", markup=False)


def _source(names: list[str]) -> str:
    """The source of prepared data, for people."""
    return ", ".join(name or "a loaded data set" for name in names)
