"""Weights of rows: factors on their loss."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

from sftkit.api import (
    WEIGHT_FIX,
    Columns,
    DataError,
    Document,
    Outcome,
    Problem,
    RowError,
    Span,
    is_weight,
    with_documents,
)

logger = logging.getLogger("sftkit")

COLUMN = "weight"


def has_weights(columns: Mapping[str, Any]) -> bool:
    """Whether there is a column ``weight``, which then holds the weights of the rows; this is logged.

    Numbers may be text, as they are in CSV files.

    Raises:
        DataError: if the column holds neither numbers nor text.
    """
    if COLUMN not in columns:
        return False
    kind = getattr(columns[COLUMN], "dtype", None) or type(columns[COLUMN]).__name__
    if not str(kind).startswith(("int", "uint", "float", "string", "large_string")) and kind != "Json":
        what = f"column {COLUMN!r} holds the weights of the rows, but is of type {kind}, not a number"
        raise DataError(Problem(what, "data", "use numbers, or rename the column"))
    logger.info("using column %r as the weight of each row's loss", COLUMN)
    return True


def weigh(outcomes: list[Outcome], rows: Columns) -> list[Outcome]:
    """The outcomes of rows, with all spans of a row multiplied by its weight; a row without one has the weight 1.

    Raises:
        RowError: for a weight that is negative or not a number.
    """
    return [
        outcome if weight == 1 else with_documents(outcome, partial(_times, weight=weight))
        for outcome, weight in zip(outcomes, weights_of(rows), strict=True)
    ]


def weights_of(rows: Columns) -> list[float]:
    """The weight of each row: 1 if it has none.

    Raises:
        RowError: for a weight that is negative or not a number.
    """
    weights = []
    for index, value in enumerate(rows[COLUMN]):
        try:
            weight = 1.0 if value is None else float(value) if isinstance(value, str) else value
        except ValueError:
            weight = value
        if not is_weight(weight):
            fix = f"{WEIGHT_FIX}; or rename the column if it is not the weight of the rows"
            raise RowError(index, f"column {COLUMN!r} is {value!r}", fix)
        weights.append(float(weight))
    return weights


def _times(document: Document, weight: float) -> Document:
    return [Span(text, trained, own * weight) for text, trained, own in document]
