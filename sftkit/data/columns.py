"""List columns of a data set as flat arrays, and back: whole-column work without per-row Python.

Legend: N examples, S tokens in all of them; ``values_S`` are the tokens, ``offsets_N1`` where each example starts
(N + 1 numbers, the last is S).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset

IGNORE = -100


def flat(dataset: Dataset, column: str) -> tuple[np.ndarray, np.ndarray]:
    """``values_S`` (int32) and ``offsets_N1`` (int64) of a list column."""
    import numpy as np

    if not len(dataset):
        return np.zeros(0, np.int32), np.zeros(1, np.int64)
    chunks = dataset.with_format("arrow")[:][column].chunks
    values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks]
    lengths = [chunk.value_lengths().to_numpy(zero_copy_only=False) for chunk in chunks]
    offsets = np.zeros(len(dataset) + 1, np.int64)
    np.cumsum(np.concatenate(lengths), out=offsets[1:])
    return np.concatenate(values).astype(np.int32, copy=False), offsets


def list_array(values_S: np.ndarray, offsets_N1: np.ndarray) -> pa.Array:  # noqa: N803 (the suffix is the shape)
    """An Arrow array of int32 lists over flat values."""
    import pyarrow as pa

    return pa.LargeListArray.from_arrays(pa.array(offsets_N1, pa.int64()), pa.array(values_S, pa.int32()))


def from_flat(offsets_N1: np.ndarray, **columns_S: np.ndarray) -> Dataset:  # noqa: N803
    """A data set of int32 list columns that share their offsets."""
    import pyarrow as pa
    from datasets import Dataset

    return Dataset(pa.table({name: list_array(values, offsets_N1) for name, values in columns_S.items()}))


def count_trained(labels_S: np.ndarray, offsets_N1: np.ndarray) -> np.ndarray:  # noqa: N803
    """Number of labels that are trained, of each example (int64, N)."""
    import numpy as np

    running = np.zeros(len(labels_S) + 1, np.int64)
    np.cumsum(labels_S != IGNORE, out=running[1:])
    return running[offsets_N1[1:]] - running[offsets_N1[:-1]]
