"""Prepared rows to look at in Python: as text, and in colours in a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from sftkit.data.counts import note_lines
from sftkit.errors import ConfigError, Problem, nearest
from sftkit.run.rows import TOKEN_KINDS, WEIGHT_MEANING, TokenKind, TokenPiece, TokenRow, read_batch

if TYPE_CHECKING:
    from sftkit.run.stages import PreparedRun

#: The marks around tokens of a kind in text.
MARKS: dict[TokenKind, tuple[str, str]] = {
    "trained": ("⟦", "⟧"),
    "context": ("", ""),
    "padding": ("‹", "›"),
    "other": ("⟦!", "⟧"),
}
#: Half transparent, for light and dark notebooks.
_STYLE = (
    ".sftkit-preview pre{white-space:pre-wrap;overflow-wrap:anywhere;padding:.6em;border:1px solid #8886;margin:.3em 0}"
    ".sftkit-preview .trained{background:#2ea04366}.sftkit-preview .other{background:#f8514966}"
    ".sftkit-preview .padding{opacity:.5}.sftkit-preview p{margin:.4em 0}"
)


@dataclass(frozen=True, repr=False)
class Preview:
    """Rows of one batch as the model sees them, shown as text or, in a notebook, in colours.

    Attributes:
        split: the split that they are from.
        rows: the rows, each with its pieces of text and what training does with them.
        notes: what was noted when the split was prepared.
    """

    split: str
    rows: tuple[TokenRow, ...]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        marked = [f"{before}{kind}{after}  {meaning}".strip() for kind, meaning, (before, after) in self._legend()]
        blocks = ["\n".join(marked)]
        for row in self.rows:
            text = "".join(_text(pieces) for pieces in row.runs)
            blocks.append(f"── {row.title}\n{text}")
        return "\n\n".join([*blocks, *self.notes])

    def _repr_html_(self) -> str:
        legend = " · ".join(
            f'<span class="{kind}">{kind}</span> {html.escape(meaning)}'.strip() for kind, meaning, _ in self._legend()
        )
        weighted = any(piece.weight != 1 for row in self.rows for piece in row.pieces)
        parts = [f"<p>{legend}{f' · ×0.5 {WEIGHT_MEANING}' if weighted else ''}</p>"]
        for row in self.rows:
            parts.append(f"<p><b>{html.escape(row.title)}</b></p><pre>{''.join(map(_markup, row.runs))}</pre>")
        parts += [f"<p>{html.escape(line)}</p>" for line in self.notes]
        return f'<div class="sftkit-preview"><style>{_STYLE}</style>{"".join(parts)}</div>'

    def _legend(self) -> Iterator[tuple[TokenKind, str, tuple[str, str]]]:
        for kind, meaning in TOKEN_KINDS.items():
            if any(row.count(kind) for row in self.rows):
                yield kind, "" if meaning == kind else meaning.removeprefix(f"{kind}: "), MARKS[kind]


def preview(run: PreparedRun, split: str, number: int, first: int) -> Preview:
    """Rows of a prepared run, as one batch.

    Args:
        run: the run.
        split: ``train``, or the name of an evaluation set.
        number: how many rows.
        first: the number of the first one, from 1.

    Raises:
        ConfigError: if there is no such split or row.
    """
    splits = run.data.splits
    if split not in splits:
        known = f"the splits are: {', '.join(splits)}"
        raise ConfigError(
            Problem(f"there is no split {split!r}", "preview(split=...)", nearest(split, splits) or known)
        )
    rows: Any = splits[split]
    if hasattr(rows, "__len__"):
        if not 1 <= first <= len(rows):
            what = f"there is no row {first}: {split} has {len(rows)} rows"
            raise ConfigError(Problem(what, "preview(row=...)", f"use a number from 1 to {len(rows)}"))
        examples = [rows[place] for place in range(first - 1, min(first - 1 + number, len(rows)))]
    else:
        examples = list(islice(rows, first - 1, first - 1 + number))
    read = read_batch(examples, run.collator, run.tokenizer, first=first - 1)
    return Preview(split, tuple(read), tuple(note_lines({split: run.data.summary()[split]})))


def _text(pieces: list[TokenPiece]) -> str:
    before, after = MARKS[pieces[0].kind]
    opening = "\n──── next document ────\n" if pieces[0].opens else ""
    weight = f"×{pieces[0].weight:g}" if pieces[0].weight != 1 else ""
    return f"{opening}{before}{''.join(piece.shown for piece in pieces)}{after}{weight}"


def _markup(pieces: list[TokenPiece]) -> str:
    opening = "<hr>" if pieces[0].opens else ""
    weight = f"<b>×{pieces[0].weight:g}</b>" if pieces[0].weight != 1 else ""
    tokens = (
        f'<span title="{piece.at}: {" ".join(map(str, piece.shown_ids))}">{html.escape(piece.shown)}</span>'
        for piece in pieces
    )
    return f'{opening}<span class="{pieces[0].kind}">{"".join(tokens)}</span>{weight}'
