"""What the model sees and what it is trained on, read from the collator's batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from sftkit.data.columns import IGNORE_INDEX
from sftkit.training.collate import unchecked

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TokenKind = Literal["trained", "context", "padding", "other"]
TOKEN_KINDS: dict[TokenKind, str] = {
    "trained": "trained",
    "context": "context: the model sees it, but is not trained on it",
    "padding": "padding",
    "other": "trained to predict another token than the one shown",
}
WEIGHT_MEANING = "weight of the loss of the text before it"
#: A special token that is repeated at least this often, like those of an image, is shown once with its count.
MANY = 4


@dataclass(frozen=True)
class TokenPiece:
    """A token, several tokens that form a character together, or a special token that is repeated many times.

    Attributes:
        text: the decoded text; for a repeated special token, the token and its count.
        ids: the token ids.
        at: position of the first token in the row.
        kind: what training does with it.
        weight: weight of its loss; 1 if it is not trained.
        opens: whether a later document of a packed row begins here.
        special: whether it is a special token.
    """

    text: str
    ids: tuple[int, ...]
    at: int
    kind: TokenKind
    weight: float = 1.0
    opens: bool = False
    special: bool = False

    @property
    def shown(self) -> str:
        """The text with visible whitespace."""
        return self.text.replace("\n", "⏎\n").replace("\t", "⇥\t")

    @property
    def shown_ids(self) -> tuple[int, ...]:
        """The ids; a repeated id only once."""
        return self.ids[:1] if len(self.ids) >= MANY and len({*self.ids}) == 1 else self.ids


@dataclass(frozen=True)
class TokenRow:
    """One row of a batch.

    Attributes:
        number: its number in its split, from 1.
        pieces: its tokens.
        more: the number of further tokens, which are not in the pieces.
    """

    number: int
    pieces: tuple[TokenPiece, ...]
    more: int = 0

    @property
    def runs(self) -> list[list[TokenPiece]]:
        """Runs of pieces of the same kind and weight, each within one document."""
        runs: list[list[TokenPiece]] = []
        for piece in self.pieces:
            if piece.opens or not runs or (piece.kind, piece.weight) != (runs[-1][-1].kind, runs[-1][-1].weight):
                runs.append([])
            runs[-1].append(piece)
        return runs

    def count(self, kind: TokenKind) -> int:
        """Number of tokens of a kind."""
        return sum(len(piece.ids) for piece in self.pieces if piece.kind == kind)

    @property
    def documents(self) -> int:
        """Number of documents in the row."""
        return 1 + sum(piece.opens for piece in self.pieces)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for ``--json``."""
        return asdict(self)

    @property
    def title(self) -> str:
        """The number of the row, and its counts."""
        tokens = sum(len(piece.ids) for piece in self.pieces) - self.count("padding")
        trained = self.count("trained") + self.count("other")
        parts = [f"row {self.number}", f"{tokens} tokens", f"{trained} trained ({trained / max(tokens, 1):.0%})"]
        if weighted := sum(len(piece.ids) for piece in self.pieces if piece.weight != 1):
            parts.append(f"{weighted} weighted")
        if self.documents > 1:
            parts.append(f"{self.documents} documents")
        if padding := self.count("padding"):
            parts.append(f"{padding} padding")
        if other := self.count("other"):
            parts.append(f"{other} trained to predict another token")
        if self.more:
            parts.append(f"{self.more} more tokens not shown")
        return " · ".join(parts)


def read_batch(
    examples: Sequence[dict[str, Any]],
    collator: Callable[[list[dict[str, Any]]], Any],
    tokenizer: PreTrainedTokenizerBase,
    first: int = 0,
    limit: int | None = None,
) -> list[TokenRow]:
    """The rows of the batch that the collator makes of some examples, also if it does not keep its contract.

    Args:
        examples: the examples.
        collator: the run's collator.
        tokenizer: the run's tokenizer.
        first: number of the first example in its split, from 0.
        limit: the most tokens of a row that are decoded; None for all of them.
    """
    made = unchecked(collator)(list(examples))
    batch = {name: values for name, values in made.items() if getattr(values, "ndim", 0) > 0}
    if (lengths := batch.get("row_lengths")) is not None:  # a padding-free batch: all examples in one row
        batch = {name: values[0].split(lengths.tolist()) for name, values in batch.items() if values.ndim == 2}
    else:
        batch = {name: values for name, values in batch.items() if values.shape == batch["input_ids"].shape}
    rows = []
    for index, example in enumerate(examples):
        length = len(example["input_ids"])
        columns = {name: values[index][:limit].tolist() for name, values in batch.items()}
        pieces = tuple(_pieces(columns, length, tokenizer))
        rows.append(TokenRow(first + index + 1, pieces, 0 if limit is None else max(length - limit, 0)))
    return rows


def _pieces(columns: dict[str, list[Any]], length: int, tokenizer: PreTrainedTokenizerBase) -> list[TokenPiece]:
    ids, labels = columns["input_ids"], columns["labels"]
    # Packed rows have no mask: everything after the example is padding.
    mask = columns.get("attention_mask") or [int(at < length) for at in range(len(ids))]
    positions = columns.get("position_ids")
    kinds = [_kind(*three) for three in zip(ids, labels, mask, strict=True)]
    loss_weights = columns.get("loss_weights") or [1.0] * len(ids)
    weights = [weight if label != IGNORE_INDEX else 1.0 for weight, label in zip(loss_weights, labels, strict=True)]
    opens = [bool(positions and mask[at] and at and positions[at] == 0) for at in range(len(ids))]
    pieces, before = [], (0, 0)
    at = 0
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    while at < len(ids):
        if (end := _repeated(ids, kinds, at)) - at >= MANY and ids[at] in special:
            text = f"{tokenizer.convert_ids_to_tokens(ids[at])} x {end - at}"
            pieces.append(TokenPiece(text, tuple(ids[at:end]), at, kinds[at], weights[at], opens[at], special=True))
            before, at = (end, end), end
            continue
        end, text = _readable(ids, before, at, tokenizer)
        if len({*zip(kinds[at:end], weights[at:end], strict=True)}) > 1 or any(opens[at + 1 : end]):
            end, text = at + 1, str(tokenizer.convert_ids_to_tokens(ids[at]))
        piece = (text, tuple(ids[at:end]), at, kinds[at], weights[at], opens[at])
        pieces.append(TokenPiece(*piece, special=ids[at] in special))
        before, at = (at, end), end
    return pieces


def _repeated(ids: list[int], kinds: list[TokenKind], at: int) -> int:
    """The end of the run of equal context tokens that begins here."""
    end = at
    while end < len(ids) and kinds[end] == "context" and ids[end] == ids[at]:
        end += 1
    return end


def _kind(token: int, label: int, mask: int) -> TokenKind:
    if label != IGNORE_INDEX:
        return "trained" if label == token else "other"
    return "context" if mask else "padding"


def _readable(ids: list[int], before: tuple[int, int], at: int, tokenizer: PreTrainedTokenizerBase) -> tuple[int, str]:
    """The end of the piece that begins at ``at``, and its text as it reads after the piece before it."""

    def decode(part: list[int]) -> str:
        return str(tokenizer.decode(part, clean_up_tokenization_spaces=False))

    head = ids[slice(*before)]
    known = decode(head)
    for end in range(at + 1, min(at + 8, len(ids)) + 1):  # a character has up to 4 bytes, and a token at least 1
        text = decode(head + ids[at:end])
        text = text[len(known) :] if text.startswith(known) else decode(ids[at:end])
        if "\ufffd" not in text:
            return end, text
    return at + 1, str(tokenizer.convert_ids_to_tokens(ids[at]))
