"""Documents as whole texts, and the runs of characters in them that are trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sftkit.data.documents import WEIGHT_FIX, Document, is_weight
from sftkit.errors import DataError, Problem

PIECE = 1 << 21  # characters tokenized at once, about: what the tokenizer tells of them takes some 30 bytes each


class Texts(NamedTuple):
    """Documents as whole texts, and all their regions.

    Attributes:
        texts: of the documents.
        owners: whose each region is.
        starts: its first character.
        ends: the character behind it.
        weights: its weight.
    """

    texts: list[str]
    owners: list[int]
    starts: list[int]
    ends: list[int]
    weights: list[float]

    @classmethod
    def pieces_of(cls, documents: Sequence[Document]) -> Iterator[Texts]:
        """Some documents at a time, about `PIECE` characters."""
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
                if trained and text and (weight == 1 or _counts(weight)):
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


def _counts(weight: float) -> bool:
    """Whether a span of this weight is trained."""
    if not is_weight(weight):
        raise DataError(Problem(f"a span's weight is {weight!r}", "the formatter", WEIGHT_FIX))
    return weight > 0
