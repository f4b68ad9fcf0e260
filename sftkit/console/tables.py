"""Tables that are shown at the end of a stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def show_table(console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; numbers are aligned to the right, and text is never interpreted as markup."""
    table = Table(title=title, title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
    kept = [list(row) for row in rows]
    for index, name in enumerate(columns):
        numeric = bool(kept) and all(isinstance(row[index], int | float) for row in kept)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in kept:
        table.add_row(*(Text(_cell(value)) for value in row))
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def show_data(console: Console, summary: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the counts of each split, and what was dropped or truncated."""
    rows = []
    for split, counts in summary.items():
        plain = {"rows", "tokens", "trained tokens", "fingerprint", "rows read", "streaming", "sources"}
        streamed = "streamed" if counts.get("streaming") else ""
        share = "" if streamed else f"{counts['trained tokens'] / max(counts['tokens'], 1):.1%}"
        done = ", ".join(f"{number:,} {what}" for what, number in counts.items() if what not in plain)
        rows.append(
            (
                *(split, counts["rows read"], *(counts.get(k, streamed) for k in ("rows", "tokens", "trained tokens"))),
                share,
                done or "nothing dropped or truncated",
            )
        )
    names = ("split", "rows read", "rows", "tokens", "trained", "share", "changes")
    show_table(console, "Data", names, rows)


def show_metrics(console: Console, metrics: Mapping[str, Any]) -> None:
    """Print every metric, with its value before the training if it is known."""
    rows = [
        [name, metrics.get(f"{name}_before", ""), value]
        for name, value in metrics.items()
        if not name.endswith("_before")
    ]
    cells = [[name, _cell(before), _cell(after)] for name, before, after in rows]
    show_table(console, "Results", ("metric", "before", "after"), cells)
