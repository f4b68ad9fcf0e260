"""The rows that were dropped, in the terminal and as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from sftkit.api import DroppedRow


def by_reason(counts: Mapping[str, Any], rows: Sequence[DroppedRow], most: int) -> list[dict[str, Any]]:
    """Why rows were dropped, each with the number of rows, that of each source if it is known, and the first of them.

    Args:
        counts: what was done to the rows of the split.
        rows: those that are known.
        most: how many to show of each reason.
    """
    found: dict[str, list[DroppedRow]] = {}
    for row in rows:
        found.setdefault(row.what, []).append(row)
    return [
        {
            "what": what,
            "number": counts.get(what, len(some)),
            "sources": {name: of[what] for name, of in counts.get("sources", {}).items() if what in of},
            "rows": [{"place": row.place, "detail": row.detail, "row": row.row} for row in some[:most]],
        }
        for what, some in found.items()
    ]


def print_dropped(screen: Console, split: str, reasons: Sequence[Mapping[str, Any]]) -> None:
    """Print the rows by reason, each with its place."""
    if not reasons:
        screen.print(f"no row of {split} was dropped", markup=False)
    for at, reason in enumerate(reasons):
        by_source = ", ".join(f"{name} {number:,}" for name, number in reason["sources"].items())
        title = f"{split}: {reason['number']:,} {reason['what']}{f' ({by_source})' if by_source else ''}"
        screen.print(f"{chr(10) if at else ''}{title}", style="bold", markup=False)
        for row in reason["rows"]:
            title = " · ".join(each for each in (row["place"], row["detail"]) if each)
            screen.print(f"── {title}", style="cyan", markup=False)
            screen.print(row["row"], markup=False)
        if (more := reason["number"] - len(reason["rows"])) > 0:
            screen.print(f"   and {more:,} more", markup=False)
