# ruff: noqa: N803, N806 (suffixes are shapes)
"""Which part of which document goes into which row.

Legend: N documents, P pieces (documents, or parts of documents cut by row borders), R rows.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np


class Pieces(NamedTuple):
    """Pieces of the flat token array, in the order in which they fill rows (integers, P each)."""

    starts: np.ndarray
    lengths: np.ndarray
    rows: np.ndarray  # ascending


def best_fit(lengths_N: np.ndarray, capacity: int) -> Pieces:
    """Place whole documents by the best-fit decreasing rule; rows keep the order of the data.

    Args:
        lengths_N: tokens of each document, each from 1 to ``capacity``.
        capacity: maximum number of tokens of a row.
    """
    import numpy as np

    rows_N, made = _best_fit_decreasing(lengths_N, capacity)
    # A row's rank is the rank of its first document.
    _, first_R = np.unique(rows_N, return_index=True)
    rank_R = np.empty(made, np.int32)
    rank_R[np.argsort(first_R)] = np.arange(made, dtype=np.int32)
    rows_N = rank_R[rows_N]
    order_N = np.argsort(rows_N, kind="stable")
    starts_N = np.cumsum(lengths_N) - lengths_N
    return Pieces(starts_N[order_N], lengths_N[order_N], rows_N[order_N])


def _best_fit_decreasing(lengths_N: np.ndarray, capacity: int) -> tuple[np.ndarray, int]:
    """The row of each document, and the number of rows.

    Documents of one length are placed together, and one step of the loop fills all rows with the same free space. So
    the number of steps grows with the number of distinct lengths and spaces, not of documents.
    """
    import numpy as np

    counts = np.bincount(lengths_N, minlength=1)
    placed = array("i")  # rows of the documents, longest first
    rows_by_space: dict[int, list[int]] = {}
    spaces: list[int] = []  # the keys of rows_by_space, ascending
    made = 0
    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        while left:
            at = bisect_left(spaces, length)
            if at == len(spaces):
                new = -(-left // (capacity // length))
                rows_by_space[capacity] = list(range(made, made + new))
                spaces.append(capacity)
                made += new
            space = spaces[at]
            rows = rows_by_space[space]
            # The tightest row stays the tightest until the length no longer fits, so it takes as many as it can.
            each = min(space // length, left)
            taken = rows[-min(len(rows), left // each) :]
            del rows[-len(taken) :]
            if not rows:
                del spaces[at], rows_by_space[space]
            placed += array("i", taken) * each
            left -= len(taken) * each
            rest = space - each * length
            if rest not in rows_by_space and rest:
                insort(spaces, rest)
            if rest:
                rows_by_space.setdefault(rest, []).extend(taken)
    rows_N = np.empty(len(lengths_N), np.int32)
    rows_N[np.argsort(-lengths_N.astype(np.int32), kind="stable")] = np.frombuffer(placed, np.int32)
    return rows_N, made


def wrapped(lengths_N: np.ndarray, capacity: int, endless: bool) -> Pieces:
    """Cut the stream of all documents into rows of ``capacity`` tokens.

    Args:
        lengths_N: tokens of each document, at least 1.
        capacity: tokens of a row.
        endless: fill the last row with the first documents; otherwise it stays short.
    """
    import numpy as np

    total = int(lengths_N.sum())
    starts_N = np.cumsum(lengths_N) - lengths_N
    if endless and total:
        repeated, total = total, -(-total // capacity) * capacity
        times = -(-total // repeated)
        starts_N, lengths_N = np.tile(starts_N, times), np.tile(lengths_N, times)
    ends_N = np.cumsum(lengths_N)
    borders_P = np.union1d(ends_N - lengths_N, np.arange(0, total, capacity))
    borders_P = borders_P[borders_P < total]
    document_P = np.searchsorted(ends_N, borders_P, side="right")
    into_P = borders_P - (ends_N - lengths_N)[document_P]
    return Pieces(starts_N[document_P] + into_P, np.diff(borders_P, append=total), borders_P // capacity)
