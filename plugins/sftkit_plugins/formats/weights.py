"""How much the loss of a row or of a message counts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from sftkit.api import WEIGHT_FIX, Columns, DataError, Document, Problem, RowError, Skipped, Span, is_weight

logger = logging.getLogger("sftkit")

COLUMN = "weight"
KEYS = ("train", "weight")


def has_weights(columns: Mapping[str, Any]) -> bool:
    """Whether there is a column ``weight``, which then says how much each row's loss counts: that is told.

    Raises:
        DataError: if the column is of another type than numbers.
    """
    if COLUMN not in columns:
        return False
    kind = getattr(columns[COLUMN], "dtype", None) or type(columns[COLUMN]).__name__
    if not str(kind).startswith(("int", "uint", "float")) and kind != "Json":
        what = f"column {COLUMN!r} is of type {kind}, not a number"
        fix = "give numbers, which say how much each row's loss counts, or rename the column"
        raise DataError(Problem(what, "data", fix))
    logger.info("column %r says how much each row's loss counts", COLUMN)
    return True


def weigh(documents: list[Document | Skipped], rows: Columns) -> list[Document | Skipped]:
    """The documents with each row's weight on all of its spans; a row without one counts as usual.

    Raises:
        RowError: for a weight that is negative or no number.
    """
    weights = [1 if weight is None else weight for weight in rows[COLUMN]]
    for index, weight in enumerate(weights):
        if not is_weight(weight):
            raise RowError(index, f"column {COLUMN!r} is {weight!r}", WEIGHT_FIX)
    return [
        document if weight == 1 or isinstance(document, Skipped) else _times(document, float(weight))
        for document, weight in zip(documents, weights, strict=True)
    ]


def _times(document: Document, weight: float) -> Document:
    return [Span(text, trained, own * weight) for text, trained, own in document]


def message_weight(message: Mapping[str, Any], index: int, number: int) -> float | None:
    """What a message says of itself with ``train`` or ``weight``: how much it counts; None if it says nothing.

    Args:
        message: the message.
        index: the row's place in its batch, for errors.
        number: the message's number in the row, from 1.

    Raises:
        RowError: for a value that says nothing, or where the two contradict each other.
    """
    train, weight = (message.get(key) for key in KEYS)
    if train is not None and train not in (0, 1):
        fix = "a message is trained (true, 1) or not (false, 0); how much it counts is its weight"
        raise RowError(index, f"message {number}: train is {train!r}", fix)
    if weight is None:
        return None if train is None else float(train)
    if not is_weight(weight):
        raise RowError(index, f"message {number}: weight is {weight!r}", WEIGHT_FIX)
    if train is not None and bool(train) != bool(weight):
        what = f"message {number}: train is {train!r}, and weight is {weight!r}"
        raise RowError(index, what, "keep one of the two")
    return float(weight)
