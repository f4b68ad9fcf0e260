# ruff: noqa: N802, N803, N806, N815 (suffixes are shapes)
"""Examples as flat arrays and Arrow tables: whole-column work without per-row Python.

Legend: N examples, S tokens in all of them; ``offsets_N1`` is where each example starts (N + 1 numbers, the last is S).

Prepared rows have the columns ``input_ids`` and ``labels``, packed ones ``position_ids``, and a split in which some
token counts more or less than others ``loss_weights``. Where a formatter attaches something to its documents, rows
have it as ``attached``, one value each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset

IGNORE_INDEX = -100
LOSS_WEIGHTS = "loss_weights"  # the column, and the key of a batch
ATTACHED = "attached"


@dataclass(frozen=True)
class Examples:
    """Encoded documents, one behind the other.

    Attributes:
        ids_S: token ids (int32).
        labels_S: unshifted labels (int32), -100 where not trained; the first of each example always is.
        offsets_N1: where each example starts (int64).
        weights_S: how much the loss of each label counts (float32, more than 0; 1 where not trained); None where all
            count the same.
        attached_N: what the formatter attached to each (an Arrow array); None where it attaches nothing.
    """

    ids_S: np.ndarray
    labels_S: np.ndarray
    offsets_N1: np.ndarray
    weights_S: np.ndarray | None = None
    attached_N: pa.Array | None = None

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.offsets_N1) - 1

    @property
    def lengths_N(self) -> np.ndarray:
        """Tokens of each example (int64)."""
        import numpy as np

        return np.diff(self.offsets_N1)

    @property
    def trained_N(self) -> np.ndarray:
        """Trained tokens of each example (int64)."""
        return count_trained(self.labels_S, self.offsets_N1)

    @property
    def weighted(self) -> int:
        """Number of tokens whose weight is not 1."""
        return 0 if self.weights_S is None else int((self.weights_S != 1).sum())

    def tokens(self, which: np.ndarray, offsets_M1: np.ndarray, attached_M: pa.Array | None = None) -> Examples:
        """Examples of some of the tokens, by a mask (bool, S) or their numbers.

        Args:
            offsets_M1: where each starts.
            attached_M: what is attached to each.
        """
        weights_S = None if self.weights_S is None else self.weights_S[which]
        return Examples(self.ids_S[which], self.labels_S[which], offsets_M1, weights_S, attached_M)

    def take(self, index_M: np.ndarray) -> Examples:
        """The examples at these numbers, in their order."""
        import numpy as np

        lengths_M = self.lengths_N[index_M]
        offsets_M1 = np.concatenate([[0], np.cumsum(lengths_M)])
        token = np.arange(offsets_M1[-1]) + np.repeat(self.offsets_N1[:-1][index_M] - offsets_M1[:-1], lengths_M)
        attached_M = None if self.attached_N is None else self.attached_N.take(index_M)
        return self.tokens(token, offsets_M1, attached_M)

    def where(self, keep_N: np.ndarray) -> Examples:
        """The examples that a mask (bool, N) keeps."""
        if keep_N.all():
            return self
        attached_M = None if self.attached_N is None else self.attached_N.filter(keep_N)
        return self.tokens(*tokens_of(keep_N, self.offsets_N1), attached_M)

    @classmethod
    def concatenate(cls, parts: Sequence[Examples]) -> Examples:
        """All examples of the parts."""
        import numpy as np
        import pyarrow as pa

        if len(parts) == 1:
            return parts[0]
        lengths_N = np.concatenate([np.zeros(0, np.int64), *(part.lengths_N for part in parts)])
        ids_S = np.concatenate([np.zeros(0, np.int32), *(part.ids_S for part in parts)])
        labels_S = np.concatenate([np.zeros(0, np.int32), *(part.labels_S for part in parts)])
        weights_S = None
        if any(part.weights_S is not None for part in parts):
            weights_S = np.concatenate([part.all_weights_S for part in parts])
        attached = [part.attached_N for part in parts if part.attached_N is not None]
        attached_N = pa.concat_arrays(attached) if attached else None
        return cls(ids_S, labels_S, np.concatenate([[0], np.cumsum(lengths_N)]), weights_S, attached_N)

    @property
    def all_weights_S(self) -> np.ndarray:
        """The weights, 1 where there are none (float32, S)."""
        import numpy as np

        return np.ones(len(self.ids_S), np.float32) if self.weights_S is None else self.weights_S

    def table(self) -> pa.Table:
        """An Arrow table, one example a row."""
        made = examples_table(self.offsets_N1, self.weights_S, input_ids=self.ids_S, labels=self.labels_S)
        return made if self.attached_N is None else made.append_column(ATTACHED, self.attached_N)

    def release(self) -> None:
        """Give back memory, if what was read lies on disk; called now and then while reading in order."""


def examples_table(offsets_N1: np.ndarray, weights_S: np.ndarray | None = None, **columns_S: np.ndarray) -> pa.Table:
    """An Arrow table of int32 list columns that share their offsets.

    Args:
        offsets_N1: where each row starts.
        weights_S: the column ``loss_weights`` (float32); None for a table without it.
        columns_S: the other columns.
    """
    import pyarrow as pa

    offsets = pa.array(offsets_N1, pa.int64())
    columns = {name: pa.array(values, pa.int32()) for name, values in columns_S.items()}
    if weights_S is not None:
        columns[LOSS_WEIGHTS] = pa.array(weights_S, pa.float32())
    return pa.table({name: pa.LargeListArray.from_arrays(offsets, values) for name, values in columns.items()})


def flatten_column(table: pa.Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """``values_S`` (int32, weights float32) and ``offsets_N1`` (int64) of a list column."""
    import numpy as np

    dtype = np.float32 if column == LOSS_WEIGHTS else np.int32
    chunks = table[column].chunks
    values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks]
    lengths = [chunk.value_lengths().to_numpy(zero_copy_only=False) for chunk in chunks]
    offsets = np.zeros(len(table) + 1, np.int64)
    if lengths:
        np.cumsum(np.concatenate(lengths), out=offsets[1:])
    together = values[0] if len(values) == 1 else np.concatenate([np.zeros(0, dtype), *values])
    return together.astype(dtype, copy=False), offsets


def examples_of(dataset: Dataset) -> Examples:
    """The examples of a data set with the columns ``input_ids``, ``labels`` and perhaps ``loss_weights``, in memory."""
    table = dataset.with_format("arrow")[:]
    ids, offsets = flatten_column(table, "input_ids")
    weights = flatten_column(table, LOSS_WEIGHTS)[0] if LOSS_WEIGHTS in table.column_names else None
    return Examples(ids, flatten_column(table, "labels")[0], offsets, weights)


def tokens_of(keep_N: np.ndarray, offsets_N1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tokens (bool, S) of the examples that a mask (bool, N) keeps, and where each of those then starts."""
    import numpy as np

    lengths_N = np.diff(offsets_N1)
    return np.repeat(keep_N, lengths_N), np.concatenate([[0], np.cumsum(lengths_N[keep_N])])


def count_trained(labels_S: np.ndarray, offsets_N1: np.ndarray) -> np.ndarray:
    """Number of labels that are trained, of each example (int64, N)."""
    import numpy as np

    filled_N = offsets_N1[1:] > offsets_N1[:-1]
    counts_N = np.zeros(len(filled_N), np.int64)
    if filled_N.any():
        counts_N[filled_N] = np.add.reduceat(labels_S != IGNORE_INDEX, offsets_N1[:-1][filled_N], dtype=np.int64)
    return counts_N
