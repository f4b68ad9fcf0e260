# ruff: noqa: N806 (suffixes are shapes)
"""Packed rows from examples, with whole-column operations instead of a Python loop over rows.

Legend: N documents, S tokens in all of them, T tokens of some packed rows, P pieces, R rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftkit.api import IGNORE_INDEX, Counts, DataError, Examples, Packer, Problem, examples_table
from sftkit_plugins.packing.plan import Pieces, best_fit, wrapped

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

AT_ONCE = 1 << 8  # pieces gathered in one step: reading each one maps the pages around it, too
TABLE = 1 << 20  # approximate number of tokens of a table, and so in memory


@dataclass(frozen=True)
class BestFit(Packer):
    """Whole documents, none longer than ``max_length``, in as few rows as best-fit decreasing finds."""

    split: str
    max_length: int
    counts: Counts

    def __call__(self, examples: Examples) -> Iterator[pa.Table]:
        """The rows, in the order of the data."""
        lengths_N = examples.lengths_N
        pieces = best_fit(lengths_N[lengths_N > 0], self.max_length)
        return fill(examples, pieces, len(examples), self.split, self.counts)


@dataclass(frozen=True)
class Wrapped(Packer):
    """All documents as one stream, cut into rows of ``max_length``; the parts of a cut document are isolated."""

    split: str
    max_length: int
    counts: Counts
    concat_token_id: int | None = None
    endless: bool = False
    keep_short: bool = True

    @property
    def cuts_documents(self) -> bool:
        """True, since no document is too long."""
        return True

    @property
    def keeps_tokens(self) -> bool:
        """False where tokens are added, repeated or dropped, which is counted."""
        return self.concat_token_id is None and not self.endless and self.keep_short

    def __call__(self, examples: Examples) -> Iterator[pa.Table]:
        """The rows; the last is short, unless it is filled from the start of the stream or dropped.

        Raises:
            DataError: if the only row is a short one, which is dropped.
        """
        import numpy as np

        ids_S, labels_S, documents = examples.ids_S, examples.labels_S, len(examples)
        lengths_N = examples.lengths_N
        ends_N, lengths_N = examples.offsets_N1[1:][lengths_N > 0], lengths_N[lengths_N > 0]
        token = self.concat_token_id
        if token is not None:
            unended_N = ids_S[ends_N - 1] != token
            ends_M = ends_N[unended_N]
            # The token ends its document, so its label and weight follow the document's last token.
            added_M = np.where(labels_S[ends_M - 1] != IGNORE_INDEX, token, IGNORE_INDEX)
            weights_S = examples.weights_S
            if weights_S is not None:
                weights_S = np.insert(weights_S, ends_M, weights_S[ends_M - 1])
            sources_S = examples.sources_S
            if sources_S is not None:
                sources_S = np.insert(sources_S, ends_M, sources_S[ends_M - 1])
            ids_S, labels_S = np.insert(ids_S, ends_M, token), np.insert(labels_S, ends_M, added_M)
            lengths_N = lengths_N + unended_N
            offsets_N1 = np.append(0, np.cumsum(lengths_N))
            examples = Examples(ids_S, labels_S, offsets_N1, weights_S, sources_S=sources_S)
            self.counts.add(self.split, "concat tokens added", len(ends_M))
        pieces = wrapped(lengths_N, self.max_length, self.endless)
        if not self.keep_short:
            pieces = self._without_short(pieces)
        return fill(examples, pieces, documents, self.split, self.counts)

    def _without_short(self, pieces: Pieces) -> Pieces:
        tokens = int(pieces.lengths.sum())
        rows, rest = divmod(tokens, self.max_length)
        if not rows:
            what = f"no full row: the data has {tokens} tokens, and a row takes {self.max_length} (data.max_length)"
            fix = "add data, lower data.max_length, or set keep_short: true in plugin packing"
            raise DataError(Problem(what, f"data.{self.split}", fix))
        if rest:
            self.counts.add(self.split, "tokens of a short last row dropped", rest)
        return Pieces(*(part[pieces.rows < rows] for part in pieces))


def fill(examples: Examples, pieces: Pieces, documents: int, split: str, counts: Counts) -> Iterator[pa.Table]:
    """The rows of a plan, about `TABLE` tokens at a time; each piece's first label has no context and is masked."""
    import numpy as np

    ends_P = np.cumsum(pieces.lengths)
    last_R = np.flatnonzero(np.diff(pieces.rows, append=-1))  # the last piece of each row
    counts.add(split, "documents packed", documents)
    counts.add(split, "rows made", len(last_R))
    ends_R = ends_P[last_R]
    cuts = np.searchsorted(ends_R, np.arange(TABLE, ends_R[-1] + TABLE, TABLE)) if len(ends_R) else ()
    low_R = 0
    for high_R in np.unique(np.minimum(np.asarray(cuts, np.int64) + 1, len(ends_R))).tolist():
        first = last_R[low_R - 1] + 1 if low_R else 0
        some = Pieces(*(part[first : last_R[high_R - 1] + 1] for part in pieces))
        columns, weights_T, sources_T = _gather(examples, some)
        labels_T = columns["labels"]
        firsts_P = np.cumsum(some.lengths) - some.lengths
        if lost := int((labels_T[firsts_P] != IGNORE_INDEX).sum()):
            counts.add(split, "trained tokens without context at the start of a row", lost)
        labels_T[firsts_P] = IGNORE_INDEX
        start = ends_R[low_R - 1] if low_R else 0
        offsets_R1 = np.append(0, ends_R[low_R:high_R] - start)
        yield examples_table(offsets_R1, weights_T, sources_T, **columns)
        low_R = high_R


def _gather(examples: Examples, pieces: Pieces) -> tuple[dict[str, np.ndarray], np.ndarray | None, np.ndarray | None]:
    """Ids, labels and places in its piece of each token (int32, T each), and its weight and source if there are any."""
    import numpy as np

    ids_S, labels_S, weights_S, sources_S = examples.ids_S, examples.labels_S, examples.weights_S, examples.sources_S
    ends_P = np.cumsum(pieces.lengths)
    firsts_P = ends_P - pieces.lengths
    ids_T, labels_T, position_ids_T = (np.empty(int(pieces.lengths.sum()), np.int32) for _ in range(3))
    weights_T = None if weights_S is None else np.empty(len(ids_T), np.float32)
    sources_T = None if sources_S is None else np.empty(len(ids_T), np.int16)
    for low in range(0, len(ends_P), AT_ONCE):
        some = slice(low, low + AT_ONCE)
        lengths_P = pieces.lengths[some]
        here = slice(firsts_P[low], firsts_P[low] + lengths_P.sum())
        position_T = np.arange(here.start, here.stop) - np.repeat(firsts_P[some], lengths_P)
        index_T = np.repeat(pieces.starts[some], lengths_P) + position_T
        ids_T[here], labels_T[here], position_ids_T[here] = ids_S[index_T], labels_S[index_T], position_T
        if weights_S is not None and weights_T is not None:
            weights_T[here] = weights_S[index_T]
        if sources_S is not None and sources_T is not None:
            sources_T[here] = sources_S[index_T]
        examples.release()  # reading a piece maps the pages around it, too
    columns = {"input_ids": ids_T, "labels": labels_T, "position_ids": position_ids_T}
    return columns, weights_T, sources_T
