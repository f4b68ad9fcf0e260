"""A preview in the terminal: colours, or marks if there are none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sftkit.api import TOKEN_KINDS, WEIGHT_MEANING, TokenKind, TokenRow

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

#: Blue and orange differ for colour-blind people too, and a background shows on dark and on light terminals.
STYLES: dict[TokenKind, str] = {
    "trained": "color(16) on color(153)",
    "context": "",
    "padding": "dim italic",
    "other": "bold color(16) on color(214)",
}
SPECIAL: dict[TokenKind, str] = {**STYLES, "trained": "bold color(54) on color(153)", "context": "bold magenta"}
#: The marks around tokens of a kind if there is no colour.
MARKS: dict[TokenKind, tuple[str, str]] = {
    "trained": ("⟦", "⟧"),
    "context": ("", ""),
    "padding": ("‹", "›"),
    "other": ("⟦!", "⟧"),
}


def print_rows(screen: Console, rows: Sequence[TokenRow], ids: bool) -> None:
    """Print the legend and the rows; ``ids`` adds the token ids."""
    from rich.text import Text

    colour = screen.color_system is not None and not screen.no_color
    for kind, meaning in TOKEN_KINDS.items():
        if kind == "other" and not any(row.count("other") for row in rows):
            continue
        before, after = ("", "") if colour else MARKS[kind]
        line = Text().append(f"{before}{kind}{after}", style=STYLES[kind] if colour else "")
        screen.print(
            line if meaning == kind else line.append(f"  {meaning.removeprefix(f'{kind}: ')}", style="not dim")
        )
    if any(piece.weight != 1 for row in rows for piece in row.pieces):
        screen.print(f"×0.5  {WEIGHT_MEANING}", markup=False)
    for row in rows:
        screen.print(f"\n── {row.title}", style="bold", markup=False)
        text = as_text(row, ids, colour)
        screen.print(text[:-1] if text.plain.endswith("\n") else text)


def as_text(row: TokenRow, ids: bool, colour: bool) -> Text:
    """A row for the terminal; padding is counted. A weight other than 1 follows its text, as ``×0.5``.

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
        if kind == "padding":
            run = [replace(run[0], text=f"padding x {sum(len(piece.ids) for piece in run)}")]
        for piece in run:
            style = (SPECIAL if piece.special else STYLES)[kind]
            text.append(piece.shown, style=style if colour else "")
            if ids:
                text.append(f"[{' '.join(map(str, piece.shown_ids))}]", style="cyan" if colour else "")
        text.append(after)
        if weight != 1:
            text.append(f"×{weight:g}", style="bold" if colour else "")
    return text
