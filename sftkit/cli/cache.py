"""``sftkit cache``: the prepared data that is kept on disk."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="List or clear the prepared data that is kept on disk.", no_args_is_help=True)


@app.command("list")
def list_entries() -> None:
    """List the kept data: when it was made, its rows, its size and its source."""
    from datetime import datetime

    from sftkit.console import console, show_table
    from sftkit.data import cache

    rows = []
    for entry in cache.entries():
        summary, parts = entry.info.get("summary", {}), entry.info.get("parts", {})
        made = datetime.fromtimestamp(entry.info.get("created", 0)).isoformat(" ", "minutes")
        size = f"{entry.size / 1e6:.1f} MB"
        rows.append(
            (made, entry.directory.name[:8], parts.get("split", ""), summary.get("rows", 0), size, _source(parts))
        )
    screen = console()
    show_table(
        screen, f"Prepared data in {cache.cache_directory()}", ("made", "key", "split", "rows", "size", "source"), rows
    )


@app.command("clear")
def clear(
    older_than: Annotated[float, typer.Option("--older-than", min=0, help="Remove only older data, in days.")] = 0.0,
) -> None:
    """Remove the kept data, except what another process is preparing."""
    from sftkit.console import console
    from sftkit.data import cache

    number, size = cache.clear(older_than * 86_400)
    console().print(f"removed {number} entries, {size / 1e6:.1f} MB", markup=False)


def _source(parts: dict) -> str:
    """The source of prepared data, for people."""
    names = []
    for source in parts.get("sources", []):
        while isinstance(source, dict) and "of" in source:
            source = source["of"]
        files = source.get("files") if isinstance(source, dict) else None
        names += [str(file[0]) for file in files] if files else ["a loaded data set, or one from the hub"]
    return ", ".join(names)
