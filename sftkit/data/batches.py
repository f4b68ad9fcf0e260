"""Rows in batches: some at a time, as columns of Python values."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sftkit.data.media import has_media, read_rows

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, Features

BATCH = 2000
MEDIA_BATCH = 256  # for rows with images, audio or video, which may take a megabyte each
#: Rows after which a memory-mapped source is opened again, to release the memory of pages that were read.
REMAP = 24 * BATCH

RowBatch = tuple["np.ndarray", dict[str, Any]]
"""The numbers of some rows, and the rows as columns."""


def batch_size(features: Features) -> int:
    """How many rows are read at once."""
    return MEDIA_BATCH if has_media(features) else BATCH


def parts_of(rows: Dataset, picked: np.ndarray | None) -> Iterator[tuple[Dataset, slice | np.ndarray, np.ndarray]]:
    """The batches of some rows; memory use does not grow with their number.

    Args:
        rows: the rows.
        picked: the numbers of those to use; None for all.

    Yields:
        The data set to read a batch from, where in it the batch is, and the numbers of its rows.
    """
    import numpy as np

    number, size = len(rows) if picked is None else len(picked), batch_size(rows.features)
    mapped = bool(rows.cache_files)
    for start in range(0, number, size):
        if mapped and start and start % REMAP == 0:
            rows = pickle.loads(pickle.dumps(rows))  # stores the names of the files, and opens them again
        part = slice(start, min(start + size, number))
        if picked is None:
            yield rows, part, np.arange(part.start, part.stop)
        else:
            yield rows, picked[part], picked[part]


def batches(rows: Dataset, picked: np.ndarray | None) -> Iterator[RowBatch]:
    """Some rows at a time, with their numbers; ``picked`` has the numbers of those to use, or is None for all."""
    for part, at, numbers in parts_of(rows, picked):
        yield numbers, read_rows(part, at)
