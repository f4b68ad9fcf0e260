"""What the model sees and what it is trained on, read from the collator's own batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sftkit.api import IGNORE_INDEX

if TYPE_CHECKING:
    from rich.text import Text
    from transformers import PreTrainedTokenizerBase

Kind = Literal["trained", "context", "padding", "other"]
LEGEND: dict[Kind, str] = {
    "trained": "trained",
    "context": "context, seen but not trained",
    "padding": "padding",
    "other": "trained to give another token than the one that stands here",
}
#: A special token that stands so often in a row, as those of a picture do, is shown once with its number.
MANY = 4
WEIGHT_MEANING = "the loss of what stands before it counts so many times"
STYLES: dict[Kind, str] = {"trained": "black on green", "context": "", "padding": "dim", "other": "black on red"}
#: Where there is no colour: what is put around tokens of a kind.
MARKS: dict[Kind, tuple[str, str]] = {
    "trained": ("⟦", "⟧"),
    "context": ("", ""),
    "padding": ("‹", "›"),
    "other": ("⟦!", "⟧"),
}


@dataclass(frozen=True)
class Piece:
    """One token, the few that only together make a character, or a special token that stands there many times.

    Attributes:
        text: what it decodes to; of a special token that is repeated, the token and how often.
        ids: its token ids.
        at: position of the first in the row.
        kind: what training does with it.
        weight: how much its loss counts; 1 where it is not trained.
        opens: whether a document of a packed row begins here, behind another.
    """

    text: str
    ids: tuple[int, ...]
    at: int
    kind: Kind
    weight: float = 1.0
    opens: bool = False

    @property
    def shown(self) -> str:
        """The text with its white space visible."""
        return self.text.replace("\n", "⏎\n").replace("\t", "⇥\t")

    @property
    def shown_ids(self) -> tuple[int, ...]:
        """The ids; of one that stands many times, once."""
        return self.ids[:1] if len(self.ids) >= MANY and len({*self.ids}) == 1 else self.ids


@dataclass(frozen=True)
class Row:
    """One row of a batch."""

    number: int
    pieces: tuple[Piece, ...]

    @property
    def runs(self) -> list[list[Piece]]:
        """The pieces in runs of one kind and weight; none goes over the border of a document."""
        runs: list[list[Piece]] = []
        for piece in self.pieces:
            if piece.opens or not runs or (piece.kind, piece.weight) != (runs[-1][-1].kind, runs[-1][-1].weight):
                runs.append([])
            runs[-1].append(piece)
        return runs

    def count(self, kind: Kind) -> int:
        """Tokens of a kind."""
        return sum(len(piece.ids) for piece in self.pieces if piece.kind == kind)

    @property
    def documents(self) -> int:
        """Documents in the row."""
        return 1 + sum(piece.opens for piece in self.pieces)

    @property
    def title(self) -> str:
        """Its counts, for people."""
        tokens = sum(len(piece.ids) for piece in self.pieces) - self.count("padding")
        trained = self.count("trained") + self.count("other")
        told = [f"row {self.number}", f"{tokens} tokens", f"{trained} trained ({trained / max(tokens, 1):.0%})"]
        if weighted := sum(len(piece.ids) for piece in self.pieces if piece.weight != 1):
            told.append(f"{weighted} weighted")
        if self.documents > 1:
            told.append(f"{self.documents} documents")
        if padding := self.count("padding"):
            told.append(f"{padding} padding")
        if other := self.count("other"):
            told.append(f"{other} trained to give another token")
        return " · ".join(told)


def read_batch(
    examples: Sequence[dict[str, Any]],
    collator: Callable[[list[dict[str, Any]]], Any],
    tokenizer: PreTrainedTokenizerBase,
    first: int = 0,
) -> list[Row]:
    """The rows of the batch that the collator makes of some examples.

    Args:
        first: number of the first example in its split, from 0.
    """
    batch = {name: values for name, values in collator(list(examples)).items() if getattr(values, "ndim", 0) > 0}
    if (lengths := batch.get("row_lengths")) is not None:  # a padding-free batch: all examples in one row
        batch = {name: values[0].split(lengths.tolist()) for name, values in batch.items() if values.ndim == 2}
    else:
        batch = {name: values for name, values in batch.items() if values.shape == batch["input_ids"].shape}
    rows = []
    for index, example in enumerate(examples):
        columns = {name: values[index].tolist() for name, values in batch.items()}
        rows.append(Row(first + index + 1, tuple(_pieces(columns, len(example["input_ids"]), tokenizer))))
    return rows


def _pieces(columns: dict[str, list[Any]], length: int, tokenizer: PreTrainedTokenizerBase) -> list[Piece]:
    ids, labels = columns["input_ids"], columns["labels"]
    # Packed rows have no mask: what the collator put behind the example is padding.
    mask = columns.get("attention_mask") or [int(at < length) for at in range(len(ids))]
    positions = columns.get("position_ids")
    kinds = [_kind(*three) for three in zip(ids, labels, mask, strict=True)]
    given = columns.get("loss_weights") or [1.0] * len(ids)
    weights = [weight if label != IGNORE_INDEX else 1.0 for weight, label in zip(given, labels, strict=True)]
    opens = [bool(positions and mask[at] and at and positions[at] == 0) for at in range(len(ids))]
    pieces, before = [], (0, 0)
    at = 0
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    while at < len(ids):
        if (end := _repeated(ids, kinds, at)) - at >= MANY and ids[at] in special:
            text = f"{tokenizer.convert_ids_to_tokens(ids[at])} x {end - at}"
            pieces.append(Piece(text, tuple(ids[at:end]), at, kinds[at], weights[at], opens[at]))
            before, at = (end, end), end
            continue
        end, text = _readable(ids, before, at, tokenizer)
        if len({*zip(kinds[at:end], weights[at:end], strict=True)}) > 1 or any(opens[at + 1 : end]):
            end, text = at + 1, str(tokenizer.convert_ids_to_tokens(ids[at]))
        pieces.append(Piece(text, tuple(ids[at:end]), at, kinds[at], weights[at], opens[at]))
        before, at = (at, end), end
    return pieces


def _repeated(ids: list[int], kinds: list[Kind], at: int) -> int:
    """Where the run of the same context token ends that begins here."""
    end = at
    while end < len(ids) and kinds[end] == "context" and ids[end] == ids[at]:
        end += 1
    return end


def _kind(token: int, label: int, mask: int) -> Kind:
    if label != IGNORE_INDEX:
        return "trained" if label == token else "other"
    return "context" if mask else "padding"


def _readable(ids: list[int], before: tuple[int, int], at: int, tokenizer: PreTrainedTokenizerBase) -> tuple[int, str]:
    """Where the piece at ``at`` ends, and its text: as it reads behind what is before it, white space and all."""

    def decode(part: list[int]) -> str:
        return str(tokenizer.decode(part, clean_up_tokenization_spaces=False))

    head = ids[slice(*before)]
    known = decode(head)
    for end in range(at + 1, min(at + 8, len(ids)) + 1):  # a character has at most 4 bytes, a token at least 1
        text = decode(head + ids[at:end])
        text = text[len(known) :] if text.startswith(known) else decode(ids[at:end])
        if "\ufffd" not in text:
            return end, text
    return at + 1, str(tokenizer.convert_ids_to_tokens(ids[at]))


def as_text(row: Row, ids: bool, colour: bool) -> Text:
    """A row for the terminal; behind what counts more or less than usual stands how much, as ``×0.5``.

    Args:
        ids: put the token ids behind each piece.
        colour: tell kinds by colour; else by the marks of `MARKS`.
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


def write_html(path: Path, rows: Sequence[Row], title: str, ids: bool) -> None:
    """Write a page that needs nothing else: no script, no request."""
    from jinja2 import Environment

    source = Path(__file__).with_name("preview.html.jinja").read_text(encoding="utf-8")
    page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(source)
    path.parent.mkdir(parents=True, exist_ok=True)
    weighted = any(piece.weight != 1 for row in rows for piece in row.pieces)
    path.write_text(
        page.render(rows=rows, title=title, legend=LEGEND, ids=ids, weight=WEIGHT_MEANING if weighted else ""),
        encoding="utf-8",
    )
