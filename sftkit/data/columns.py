# ruff: noqa: N802, N803, N806, N815 (suffixes are shapes)
"""Examples as flat arrays and Arrow tables, so that whole columns are processed without a Python loop over rows.

Legend: N examples, S tokens in all of them; ``offsets_N1`` is where each example starts (N + 1 numbers, the last is S).

Prepared rows have the columns ``input_ids`` and ``labels``. Packed rows also have ``position_ids``, and a split in
which some tokens have a weight other than 1 has ``loss_weights``. If the formatter attaches a value to each document,
the rows have it as ``attached``. In a split with several sources, ``sources`` has the number of the source of each
token; it is kept apart from the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset

IGNORE_INDEX = -100
LOSS_WEIGHTS = "loss_weights"  # the column, and the key of a batch
ATTACHED = "attached"
SOURCES = "sources"


@dataclass(frozen=True)
class Examples:
    """Encoded documents, one after the other.

    Attributes:
        ids_S: token ids (int32).
        labels_S: unshifted labels (int32), -100 for tokens that are not trained; the first label of each example
            is always -100.
        offsets_N1: where each example starts (int64).
        weights_S: the weight of each label (float32, greater than 0; 1 for tokens that are not trained); None if all
            weights are 1.
        attached_N: the value attached to each document (an Arrow array), or None.
        sources_S: the number of the source of each token (int16); None if there is one source.
    """

    ids_S: np.ndarray
    labels_S: np.ndarray
    offsets_N1: np.ndarray
    weights_S: np.ndarray | None = None
    attached_N: pa.Array | None = None
    sources_S: np.ndarray | None = None

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.offsets_N1) - 1

    @property
    def lengths_N(self) -> np.ndarray:
        """Tokens of each example (int64)."""
        import numpy as np

        return np.diff(self.offsets_N1)

    @cached_property
    def trained_N(self) -> np.ndarray:
        """Trained tokens of each example (int64), counted once."""
        return count_trained(self.labels_S, self.offsets_N1)

    @property
    def weighted(self) -> int:
        """Number of tokens with a weight other than 1."""
        return 0 if self.weights_S is None else int((self.weights_S != 1).sum())

    @property
    def source_N(self) -> np.ndarray | None:
        """The number of the source of each example, none of which is empty (int16, N); None if there is one source."""
        return None if self.sources_S is None else self.sources_S[self.offsets_N1[:-1]]

    def take(self, index_M: np.ndarray) -> Examples:
        """The examples at these positions, in this order."""
        import numpy as np

        lengths_M = self.lengths_N[index_M]
        offsets_M1 = np.concatenate([[0], np.cumsum(lengths_M)])
        token = np.arange(offsets_M1[-1]) + np.repeat(self.offsets_N1[:-1][index_M] - offsets_M1[:-1], lengths_M)
        attached_M = None if self.attached_N is None else self.attached_N.take(index_M)
        return self._of_tokens(lambda values_S: values_S[token], offsets_M1, attached_M)

    def where(self, keep_N: np.ndarray) -> Examples:
        """The examples for which a mask (bool, N) is True."""
        import numpy as np

        if keep_N.all():
            return self
        edges = np.flatnonzero(np.diff(np.concatenate([[False], keep_N, [False]])))  # of runs of examples to keep
        attached_M = None if self.attached_N is None else self.attached_N.filter(keep_N)
        runs = _runs(self.offsets_N1[edges[::2]], self.offsets_N1[edges[1::2]])
        return self._of_tokens(runs, np.concatenate([[0], np.cumsum(self.lengths_N[keep_N])]), attached_M)

    def cut(self, limit: int) -> Examples:
        """The first ``limit`` tokens of each example."""
        import numpy as np

        long_N = self.lengths_N > limit
        starts = np.append(0, self.offsets_N1[1:][long_N])  # what is kept begins after a long example
        ends = np.append(self.offsets_N1[:-1][long_N] + limit, len(self.ids_S))
        offsets_N1 = np.concatenate([[0], np.cumsum(np.minimum(self.lengths_N, limit))])
        return self._of_tokens(_runs(starts, ends), offsets_N1, self.attached_N)

    def _of_tokens(
        self, choose: Callable[[np.ndarray], np.ndarray], offsets_M1: np.ndarray, attached_M: pa.Array | None
    ) -> Examples:
        """Examples made of some of the tokens, which ``choose`` takes from a value for each token."""
        weights_S = None if self.weights_S is None else choose(self.weights_S)
        sources_S = None if self.sources_S is None else choose(self.sources_S)
        return Examples(choose(self.ids_S), choose(self.labels_S), offsets_M1, weights_S, attached_M, sources_S)

    @classmethod
    def concatenate(cls, parts: Sequence[Examples]) -> Examples:
        """The examples of all parts, in order."""
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
        sources = [part.sources_S for part in parts if part.sources_S is not None]
        sources_S = np.concatenate(sources) if sources else None
        return cls(ids_S, labels_S, np.concatenate([[0], np.cumsum(lengths_N)]), weights_S, attached_N, sources_S)

    @property
    def all_weights_S(self) -> np.ndarray:
        """The weights (float32, S); all 1 if there are none."""
        import numpy as np

        return np.ones(len(self.ids_S), np.float32) if self.weights_S is None else self.weights_S

    def table(self) -> pa.Table:
        """An Arrow table with one example per row."""
        columns = {"input_ids": self.ids_S, "labels": self.labels_S}
        made = examples_table(self.offsets_N1, self.weights_S, self.sources_S, **columns)
        return made if self.attached_N is None else made.append_column(ATTACHED, self.attached_N)

    def release(self) -> None:
        """Release the memory of pages that were read, if the examples are on disk; call it from time to time."""


def examples_table(
    offsets_N1: np.ndarray,
    weights_S: np.ndarray | None = None,
    sources_S: np.ndarray | None = None,
    **columns_S: np.ndarray,
) -> pa.Table:
    """An Arrow table of int32 list columns with the same offsets.

    Args:
        offsets_N1: where each row starts.
        weights_S: the column ``loss_weights`` (float32), or None for a table without it.
        sources_S: the column ``sources`` (int16), or None for a table without it.
        columns_S: the other columns.
    """
    import pyarrow as pa

    offsets = pa.array(offsets_N1, pa.int64())
    columns = {name: pa.array(values, pa.int32()) for name, values in columns_S.items()}
    if weights_S is not None:
        columns[LOSS_WEIGHTS] = pa.array(weights_S, pa.float32())
    if sources_S is not None:
        columns[SOURCES] = pa.array(sources_S, pa.int16())
    return pa.table({name: pa.LargeListArray.from_arrays(offsets, values) for name, values in columns.items()})


def flatten_column(table: pa.Table, column: str) -> tuple[np.ndarray, np.ndarray]:
    """``values_S`` (int32; weights float32, sources int16) and ``offsets_N1`` (int64) of a list column."""
    import numpy as np

    dtype = {LOSS_WEIGHTS: np.float32, SOURCES: np.int16}.get(column, np.int32)
    chunks = table[column].chunks
    values = [_as_numpy(chunk.flatten()) for chunk in chunks]
    lengths = [_as_numpy(chunk.value_lengths()) for chunk in chunks]
    offsets = np.zeros(len(table) + 1, np.int64)
    if lengths:
        np.cumsum(np.concatenate(lengths), out=offsets[1:])
    together = values[0] if len(values) == 1 else np.concatenate([np.zeros(0, dtype), *values])
    return together.astype(dtype, copy=False), offsets


def _as_numpy(array: pa.Array) -> np.ndarray:
    """The values of an array of numbers; without nulls not copied, and by a protocol that does not import pandas."""
    import numpy as np

    values: np.ndarray = array.to_numpy(zero_copy_only=False) if array.null_count else np.from_dlpack(array)
    return values


def examples_of(dataset: Dataset) -> Examples:
    """The examples of a data set with the columns ``input_ids``, ``labels`` and optional ``loss_weights``."""
    table = dataset.with_format("arrow")[:]
    ids, offsets = flatten_column(table, "input_ids")
    weights = flatten_column(table, LOSS_WEIGHTS)[0] if LOSS_WEIGHTS in table.column_names else None
    return Examples(ids, flatten_column(table, "labels")[0], offsets, weights)


def _runs(starts: np.ndarray, ends: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Takes the tokens from each start to its end; faster than a mask where runs are long."""
    import numpy as np

    runs = [slice(start, end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
    return lambda values_S: np.concatenate([values_S[:0], *(values_S[run] for run in runs)])


def count_trained(labels_S: np.ndarray, offsets_N1: np.ndarray) -> np.ndarray:
    """Number of trained labels in each example (int64, N)."""
    import numpy as np

    filled_N = offsets_N1[1:] > offsets_N1[:-1]
    counts_N = np.zeros(len(filled_N), np.int64)
    if filled_N.any():
        counts_N[filled_N] = np.add.reduceat(labels_S != IGNORE_INDEX, offsets_N1[:-1][filled_N], dtype=np.int64)
    return counts_N


def rows_of(table: pa.Table) -> Iterator[dict[str, Any]]:
    """The rows of a table as mappings of numpy arrays, as the collator takes them."""
    columns = {name: flatten_column(table, name) for name in table.column_names if name != ATTACHED}
    for row in range(len(table)):
        example = {name: values[offsets[row] : offsets[row + 1]] for name, (values, offsets) in columns.items()}
        if ATTACHED in table.column_names:
            example[ATTACHED] = table[ATTACHED][row].as_py()
        yield example
