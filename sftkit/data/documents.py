"""The pieces between a row and its tokens: spans, and the formatter that makes them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, NamedTuple, TypeAlias

Columns: TypeAlias = Mapping[str, Sequence[Any]]
"""A batch of rows as columns: name → one value a row."""


class Span(NamedTuple):
    """A piece of a document's text, whether the model is trained on it, and how much its loss counts.

    A weight of 1 is as usual, 0.5 half of that; with 0 the piece is not trained.
    """

    text: str
    trained: bool
    weight: float = 1.0


class Skipped(NamedTuple):
    """A row that cannot be trained on and why, in words that do not vary by row: rows are counted by reason."""

    reason: str


class RowError(ValueError):
    """A row is of a bad shape.

    Args:
        index: position of the row in the batch given to the formatter, from 0.
        message: what is wrong, with the column or role.
        fix: what the user can do.
    """

    def __init__(self, index: int, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.index, self.message, self.fix = index, message, fix


Document: TypeAlias = Sequence[Span]


class Attached(list[Span]):
    """A document's spans, and what its batch needs besides its tokens, as pictures.

    Args:
        spans: of the document.
        value: of the formatter's ``attached_type``; the collator finds it in the example, as ``attached``.
        counts: what is to be counted of the document, by name, as in ``{"pictures": 2}``.
    """

    def __init__(self, spans: Sequence[Span], value: Any, counts: Mapping[str, int]) -> None:
        super().__init__(spans)
        self.value, self.counts = value, counts


WEIGHT_FIX = "a weight is a number of at least 0: 0 is not trained, 1 as usual, 0.5 half as much"


def is_weight(value: Any) -> bool:
    """Whether a value can be the weight of a loss: 0, or a number whose sums are neither 0 nor infinite in float32."""
    return isinstance(value, Real) and (value == 0 or 1e-30 <= float(value) <= 1e30)


@dataclass(frozen=True)
class Formatter(ABC):
    """Turns rows into spans and does nothing else; the spans' texts joined are the document.

    A formatter holds plain data, so that it can be pickled.
    """

    @property
    def adds_special_tokens(self) -> bool:
        """Whether encoding adds special tokens around the text, as ``data.special_tokens`` says.

        False where the text is complete as it is, as from a chat template.
        """
        return True

    @property
    def rendered_special_tokens(self) -> Literal["once", "none"]:
        """What encoding puts around a text that is complete as it is.

        Nothing, or as processors do: ``once``, what the tokenizer does unless the text begins with it.
        """
        return "none"

    @property
    def attached_type(self) -> Any:
        """The Arrow type of what its documents have attached; with None they are plain, else all are `Attached`."""
        return None

    @property
    def uncut_ids(self) -> tuple[int, ...]:
        """Tokens that no truncation may cut off a document, as those that stand for a picture."""
        return ()

    @abstractmethod
    def __call__(self, rows: Columns) -> list[Document | Skipped]:
        """The spans of each row of the batch, or why a row is skipped.

        Raises:
            RowError: where a row is of a bad shape.
        """
