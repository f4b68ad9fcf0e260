# ruff: noqa: N803, N806 (suffixes are shapes)
"""Packed rows from examples: whole-column work, no per-row Python.

Legend: N documents, S tokens in all of them, T tokens of the packed rows, P pieces, R rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftkit.data.columns import IGNORE, flat, from_flat
from sftkit.data.length import drop_untrained
from sftkit_plugins.packing.plan import Pieces, best_fit, wrapped

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

    from sftkit.data.tally import Tally

AT_ONCE = 1 << 10  # pieces gathered in one step: their indices stay in the cache


def best_fit_rows(dataset: Dataset, split: str, max_length: int, tally: Tally) -> Dataset:
    """Whole documents, none longer than ``max_length``, in as few rows as best-fit decreasing finds."""
    import numpy as np

    ids_S, offsets_N1 = flat(dataset, "input_ids")
    labels_S, _ = flat(dataset, "labels")
    lengths_N = np.diff(offsets_N1)
    return _fill(ids_S, labels_S, best_fit(lengths_N[lengths_N > 0], max_length), len(dataset), split, tally)


def wrapped_rows(
    dataset: Dataset, split: str, max_length: int, tally: Tally, concat_token_id: int | None, endless: bool
) -> Dataset:
    """All documents as one stream, cut into rows of ``max_length``; a cut document sees nothing of its first part."""
    import numpy as np

    ids_S, offsets_N1 = flat(dataset, "input_ids")
    labels_S, _ = flat(dataset, "labels")
    lengths_N = np.diff(offsets_N1)
    offsets_N1, lengths_N = offsets_N1[np.append(True, lengths_N > 0)], lengths_N[lengths_N > 0]
    if concat_token_id is not None:
        ends_N = offsets_N1[1:]
        unended_N = ids_S[ends_N - 1] != concat_token_id
        ends_M = ends_N[unended_N]
        # The token ends its document: it is trained where the document's own last token is.
        added_M = np.where(labels_S[ends_M - 1] != IGNORE, concat_token_id, IGNORE)
        ids_S, labels_S = np.insert(ids_S, ends_M, concat_token_id), np.insert(labels_S, ends_M, added_M)
        lengths_N = lengths_N + unended_N
        tally.add(split, "concat tokens added", len(ends_M))
    return _fill(ids_S, labels_S, wrapped(lengths_N, max_length, endless), len(dataset), split, tally)


def _fill(
    ids_S: np.ndarray,
    labels_S: np.ndarray,
    pieces: Pieces,
    documents: int,
    split: str,
    tally: Tally,
) -> Dataset:
    """The rows of a plan; the first label of each piece has no context and is masked."""
    import numpy as np

    ends_P = np.cumsum(pieces.lengths)
    firsts_P = ends_P - pieces.lengths
    ids_T, labels_T, position_ids_T = (np.empty(int(pieces.lengths.sum()), np.int32) for _ in range(3))
    for low in range(0, len(ends_P), AT_ONCE):
        some = slice(low, low + AT_ONCE)
        lengths_P = pieces.lengths[some]
        here = slice(firsts_P[low], firsts_P[low] + lengths_P.sum())
        position_T = np.arange(here.start, here.stop) - np.repeat(firsts_P[some], lengths_P)
        index_T = np.repeat(pieces.starts[some], lengths_P) + position_T
        ids_T[here], labels_T[here], position_ids_T[here] = ids_S[index_T], labels_S[index_T], position_T
    lost = int((labels_T[firsts_P] != IGNORE).sum())
    labels_T[firsts_P] = IGNORE
    offsets_R1 = np.append(0, ends_P[np.flatnonzero(np.diff(pieces.rows, append=-1))])
    packed = from_flat(offsets_R1, input_ids=ids_T, labels=labels_T, position_ids=position_ids_T)
    tally.add(split, "documents packed", documents)
    tally.add(split, "rows made", len(packed))
    if lost:
        tally.add(split, "trained tokens at a row's start, without context", lost)
    return drop_untrained(packed, split, tally)
