"""Tables that fit the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sftkit.console.names import metric_name, metric_value, number
from sftkit.console.text import TAB, longest_word, visible, wrap

TOKENS = ("tokens", "trained tokens")
BETWEEN = 3  # cells from one column to the next
#: A column whose words do not leave the others this much room is shown below them, as lines of its own.
NARROWEST = 12


def show_table(console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; numbers are aligned to the right, and text is never interpreted as markup.

    Words are not broken. Where the columns do not fit the width, each row is a block of lines instead. Columns without
    a value are left out.

    Args:
        console: where to print it, such as `console`.
        title: what it shows.
        columns: their names.
        rows: the values of each row; texts may be `rich.text.Text`.
    """
    kept = [list(row) for row in rows]
    shown = [index for index in range(len(columns)) if not kept or any(_cell(row[index]).plain for row in kept)]
    names = [columns[index] for index in shown]
    cells = [[_cell(row[index]) for index in shown] for row in kept]
    numeric = [bool(kept) and all(_is_number(row[index]) for row in kept) for index in shown]
    if title:
        console.print(Text(title, style="bold"))
    if (widths := _widths([[Text(name) for name in names], *cells], console.width)) is None:
        _show_blocks(console, names, cells)
        return
    table = Table(show_edge=False, pad_edge=False)
    for name, width, right in zip(names, widths, numeric, strict=True):
        table.add_column(name, justify="right" if right else "left", width=width, overflow="fold")
    for row in cells:
        table.add_row(*(_wrapped(cell, width) for cell, width in zip(row, widths, strict=True)))
    console.print(table)


def _widths(rows: Sequence[Sequence[Text]], available: int) -> list[int] | None:
    """The width of each column: its contents', or less where they do not fit; None if words would be broken."""
    columns = list(zip(*rows, strict=True))
    wanted = [max(max(map(cell_len, cell.plain.split("\n"))) for cell in column) for column in columns]
    least = [max(longest_word(cell.plain) for cell in column) for column in columns]
    room = available - BETWEEN * (len(columns) - 1)
    if sum(wanted) <= room:
        return wanted
    # A long text in few cells a line is hard to read.
    least = [max(least[at], min(wanted[at], NARROWEST)) for at in range(len(columns))]
    if sum(least) > room:
        return None
    spare = room - sum(least)
    widths = list(least)
    while spare > 0:  # to the columns that lack the most
        at = max(range(len(widths)), key=lambda index: wanted[index] / widths[index] if widths[index] else 0)
        if widths[at] >= wanted[at]:
            break
        widths[at], spare = widths[at] + 1, spare - 1
    return widths


def _show_blocks(console: Console, names: Sequence[str], rows: Sequence[Sequence[Text]]) -> None:
    widest = max(map(cell_len, names[1:]), default=0)
    for row in rows:
        for line in wrap([(row[0].plain, "bold")], console.width):
            console.print(line)
        for name, cell in zip(names[1:], row[1:], strict=True):
            if cell.plain:
                indent = " " * (widest + 4)
                first = wrap([(cell.plain, cell.style)], console.width - len(indent))
                for number_of_line, line in enumerate(first):
                    head = f"  {name:<{widest}}  " if not number_of_line else indent
                    console.print(Text(head, style="dim").append_text(line))


def _wrapped(cell: Text, width: int) -> Text:
    lines = wrap([(cell.plain, cell.style)], width) if cell.cell_len > width else [cell]
    return Text("\n").join(lines)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Text) and value.justify == "right")


def _cell(value: Any) -> Text:
    if isinstance(value, Text):
        return value
    if isinstance(value, str):
        return Text(visible(value).expandtabs(TAB))
    if isinstance(value, float):
        return Text(number(value))
    return Text(f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))


def show_data(console: Console, summary: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the counts of each split, and of each of several sources in it, and what was dropped or truncated."""
    rows = []
    for split, counts in summary.items():
        streamed = "streamed" if counts.get("streaming") else ""
        sizes = (counts["rows read"], *(counts.get(name, streamed) for name in ("rows", *TOKENS)))
        share = "" if streamed else _trained_share(counts)
        rows.append((split, *sizes, share, _changes(counts) or "nothing dropped or truncated"))
        for name, of in counts.get("sources", {}).items():
            blank = Text("", justify="right")
            sizes = (blank, blank, *(of[each] for each in TOKENS))
            rows.append((f"{split}: {name}", *sizes, _trained_share(of), _changes(of)))
    names = ("split", "rows read", "rows", "tokens", "trained", "share", "changes")
    show_table(console, "Data", names, rows)


def _trained_share(counts: Mapping[str, Any]) -> str:
    return f"{counts['trained tokens'] / max(counts['tokens'], 1):.1%}"


def _changes(counts: Mapping[str, Any]) -> str:
    plain = {"rows", *TOKENS, "fingerprint", "rows read", "streaming", "sources"}
    return ", ".join(f"{count:,} {what}" for what, count in counts.items() if what not in plain)


def show_metrics(console: Console, metrics: Mapping[str, Any]) -> None:
    """Print every metric, with its value before the training if it is known."""
    named = sorted(metrics, key=_rank)
    compared = [name for name in named if f"{name}_before" in metrics]
    rest = [name for name in named if name not in compared and not name.endswith("_before")]
    if compared:
        changes = [
            (metric_name(name), *(metric_cell(name, metrics[each]) for each in (f"{name}_before", name)))
            for name in compared
        ]
        show_table(console, "Results", ("metric", "before", "after"), changes)
        for name in rest:
            console.print(f"{metric_name(name)} {metric_value(name, metrics[name])}", markup=False)
    elif rest:
        values = [(metric_name(name), metric_cell(name, metrics[name])) for name in rest]
        show_table(console, "Results", ("metric", "value"), values)


def show_sources(console: Console, trained: Mapping[str, Any]) -> None:
    """Print how many tokens of each source of the data were trained, and their last loss; nothing for one source."""
    rows = []
    for name, of in trained.get("sources", {}).items():
        share = Text(f"{of['tokens'] / max(trained['tokens'], 1):.1%}", justify="right")
        loss = Text("") if of["loss"] is None else metric_cell("loss", of["loss"])
        rows.append((name, of["tokens"], share, loss))
    if rows:
        show_table(console, "Training by data source", ("source", "trained tokens", "share", "last loss"), rows)


def metric_cell(name: str, value: Any) -> Text:
    """The value of a metric for `show_table`, which aligns it to the right."""
    return Text(metric_value(name, value), justify="right")


def _rank(name: str) -> int:
    """Losses come first, then what is computed with them; the metrics of a resumed run are in the order of names."""
    ends = ("loss", "perplexity", "token_accuracy")
    return next((rank for rank, end in enumerate(ends) if name.endswith(end)), len(ends))
