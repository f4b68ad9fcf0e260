"""Documents as whole texts, and the runs of trained characters in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sftkit.data.documents import WEIGHT_FIX, Document, is_weight
from sftkit.errors import DataError, Problem

PIECE = 1 << 21  # characters to tokenize at once, roughly: the tokenizer's result takes about 30 bytes for each


class Texts(NamedTuple):
    """Documents as whole texts, and all their regions: runs of trained characters with the same weight.

    Attributes:
        texts: one per document.
        owners: the index of the text that each region lies in.
        starts: the first character of each region.
        ends: the character after each region.
        weights: the weight of each region.
    """

    texts: list[str]
    owners: list[int]
    starts: list[int]
    ends: list[int]
    weights: list[float]

    @classmethod
    def pieces_of(cls, documents: Sequence[Document]) -> Iterator[Texts]:
        """The documents in pieces of roughly `PIECE` characters."""
        piece, characters = cls([], [], [], [], []), 0
        texts, owners, starts, ends, weights = piece
        for spans in documents:
            if characters >= PIECE:
                yield piece
                piece, characters = cls([], [], [], [], []), 0
                texts, owners, starts, ends, weights = piece
            owner, end, last = len(texts), 0, -1
            for text, trained, weight in spans:
                start, end = end, end + len(text)
                if trained and text and (weight == 1 or _is_trained(weight)):
                    if last == start and weights[-1] == weight:
                        ends[-1] = end
                    else:
                        owners.append(owner)
                        starts.append(start)
                        ends.append(end)
                        weights.append(weight)
                    last = end
            texts.append(spans[0][0] if len(spans) == 1 else "".join([span[0] for span in spans]))
            characters += end
        yield piece


def _is_trained(weight: float) -> bool:
    if not is_weight(weight):
        raise DataError(Problem(f"a span has the weight {weight!r}", "the formatter", WEIGHT_FIX))
    return weight > 0
