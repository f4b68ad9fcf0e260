"""A preview in the terminal: colours, or marks if there are none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sftkit.api import TOKEN_KINDS, WEIGHT_MEANING, TokenKind, TokenRow

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

STYLES: dict[TokenKind, str] = {"trained": "black on green", "context": "", "padding": "dim", "other": "black on red"}
#: The marks around tokens of a kind if there is no colour.
MARKS: dict[TokenKind, tuple[str, str]] = {
    "trained": ("⟦", "⟧"),
    "context": ("", ""),
    "padding": ("‹", "›"),
    "other": ("⟦!", "⟧"),
}


def print_rows(screen: Console, rows: Sequence[TokenRow], ids: bool) -> None:
    """Print the legend and the rows; ``ids`` adds the token ids."""
    colour = screen.is_terminal and not screen.no_color
    for kind, meaning in TOKEN_KINDS.items():
        if kind == "other" and not any(row.count("other") for row in rows):
            continue
        before, after = ("", "") if colour else MARKS[kind]
        screen.print(f"{before}{kind}{after}", style=STYLES[kind] if colour else "", markup=False, end="")
        screen.print(f"  {meaning}", markup=False)
    if any(piece.weight != 1 for row in rows for piece in row.pieces):
        screen.print(f"×0.5  {WEIGHT_MEANING}", markup=False)
    for row in rows:
        screen.print(f"\n── {row.title}", style="bold", markup=False)
        screen.print(as_text(row, ids, colour))


def as_text(row: TokenRow, ids: bool, colour: bool) -> Text:
    """A row for the terminal. A weight other than 1 follows its text, as ``×0.5``.

    Args:
        row: the row.
        ids: whether to add the token ids to each piece.
        colour: whether to show kinds by colour, and not by `MARKS`.
    """
    from rich.text import Text

    text = Text()
    for run in row.runs:
        kind, weight = run[0].kind, run[0].weight
        if run[0].opens:
            text.append("\n──── next document ────\n", style="bold")
        before, after = ("", "") if colour else MARKS[kind]
        text.append(before)
        for piece in run:
            text.append(piece.shown, style=STYLES[kind] if colour else "")
            if ids:
                text.append(f"[{' '.join(map(str, piece.shown_ids))}]", style="cyan" if colour else "")
        text.append(after)
        if weight != 1:
            text.append(f"×{weight:g}", style="bold" if colour else "")
    return text
