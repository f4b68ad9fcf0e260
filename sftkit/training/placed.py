# ruff: noqa: N803, N806, N815 (suffixes are shapes)
"""Examples as a collator was given them, and where their tokens are in its batch.

Legend: B rows, T positions, L tokens of an example.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sftkit.data.columns import LOSS_WEIGHTS

MASK = "attention_mask"
POSITIONS = "position_ids"
#: Columns that a batch holds as they are, besides the tokens.
COLUMNS = ("input_ids", "labels", POSITIONS, LOSS_WEIGHTS, MASK)


@dataclass(frozen=True)
class Given:
    """The examples of a batch, as they were before the collator got them.

    Attributes:
        examples: each with its columns as arrays.
    """

    examples: list[dict[str, Any]]

    @classmethod
    def of(cls, examples: Sequence[Mapping[str, Any]]) -> Given:
        """A copy of the examples."""
        return cls(
            [
                {name: np.array(value) if name in COLUMNS else value for name, value in example.items()}
                for example in examples
            ]
        )

    def changed(self, examples: Sequence[Mapping[str, Any]]) -> str:
        """What the collator has changed in its examples; empty if nothing."""
        if len(examples) != len(self.examples):
            return f"it was given {len(self.examples)} examples, and leaves {len(examples)} in the list"
        for before, now in zip(self.examples, examples, strict=True):
            for name, value in before.items():
                if name not in now:
                    return f"it removes {name} from its examples"
                if name in COLUMNS and not np.array_equal(value, np.asarray(now[name])):
                    return f"it changes {name} of its examples"
        return ""


class Placed(NamedTuple):
    """Where an example is in a batch.

    Attributes:
        example: the example, without the tokens that its own attention mask hides.
        row: its row.
        at_L: the positions of its tokens.
        joined: whether another example precedes it in the row.
    """

    example: dict[str, np.ndarray]
    row: int
    at_L: np.ndarray
    joined: bool


class NotPlacedError(Exception):
    """The tokens of an example are not in the batch."""


def placed_examples(
    values: Mapping[str, np.ndarray], examples: Sequence[dict[str, np.ndarray]], row_lengths: bool
) -> Iterator[Placed]:
    """Where each example is: by the attention mask, else at the start or the end of its row, or after the one before.

    Raises:
        NotPlacedError: if the tokens of an example are not where they should be.
    """
    ids_BT, mask_BT = values["input_ids"], values.get(MASK)
    real = [_real(example) for example in examples]
    joined = row_lengths or (len(ids_BT) == 1 and len(examples) > 1)
    start = 0
    for number, example in enumerate(real):
        ids_L, row = example["input_ids"], 0 if joined else number
        if joined:
            at_L = np.arange(start, start + len(ids_L))
            start += len(ids_L)
        elif mask_BT is not None and (shown := np.flatnonzero(mask_BT[row])).size == len(ids_L):
            at_L = shown
        else:
            at_L = _at_an_end(ids_BT[row], ids_L, number)
        if (at_L >= ids_BT.shape[1]).any() or not np.array_equal(ids_BT[row, at_L], ids_L):
            raise NotPlacedError(_misplaced(number, ids_BT[row], real))
        yield Placed(example, row, at_L, joined and number > 0)


def _real(example: dict[str, Any]) -> dict[str, np.ndarray]:
    """The columns of an example, without the tokens that its own attention mask hides."""
    columns = {name: value for name, value in example.items() if name in COLUMNS}
    columns.setdefault("labels", columns["input_ids"])
    if MASK in columns:
        shown = columns[MASK] != 0
        columns = {name: value[shown] for name, value in columns.items()}
    return columns


def _at_an_end(ids_T: np.ndarray, ids_L: np.ndarray, number: int) -> np.ndarray:
    """The positions of the tokens at the start or at the end of a row."""
    if len(ids_L) > len(ids_T):
        what = f"row {number + 1} of a batch has {len(ids_T)} positions, and its example {len(ids_L)} tokens"
        raise NotPlacedError(what)
    last = len(ids_T) - len(ids_L)
    at_start = np.array_equal(ids_T[: len(ids_L)], ids_L)
    return np.arange(len(ids_L)) + (0 if at_start else last)


def _misplaced(number: int, ids_T: np.ndarray, examples: list[dict[str, np.ndarray]]) -> str:
    for other, example in enumerate(examples):
        ids_L = example["input_ids"]
        ends = (ids_T[: len(ids_L)], ids_T[len(ids_T) - len(ids_L) :])
        if other != number and any(np.array_equal(part, ids_L) for part in ends):
            return f"row {number + 1} of a batch holds the tokens of example {other + 1}: rows are in another order"
    return f"input_ids of row {number + 1} of a batch are not the tokens of its example"
