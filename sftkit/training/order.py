"""The order of the rows of an epoch, computed where it is needed: it takes no memory that grows with the rows."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Sampler

from sftkit.training.permutation import Numbers, Permutation

BLOCK = 4096  # positions that are computed together
GROUPED_STEPS = 50  # of which the rows are sorted by length together, as the Trainer does


class RowOrder(Sampler[int]):
    """The order of a number of rows, as they are; subclasses have others.

    Args:
        size: the number of rows.
    """

    def __init__(self, size: int) -> None:
        self.size, self.epoch = size, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader when an epoch begins."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def at(self, positions: npt.ArrayLike) -> Numbers:
        """The rows at these positions of the order."""
        return np.asarray(positions, np.int64)

    def __iter__(self) -> Iterator[int]:
        for start in range(0, self.size, BLOCK):
            yield from self.at(np.arange(start, min(start + BLOCK, self.size))).tolist()


class Shuffled(RowOrder):
    """A pseudo-random order that depends on the seed and the epoch alone.

    Args:
        size: the number of rows.
        seed: of the data.
    """

    def __init__(self, size: int, seed: int) -> None:
        super().__init__(size)
        self._seed, self._of_epoch = seed, Permutation(size, [seed, 0])

    def set_epoch(self, epoch: int) -> None:
        """Another order in each epoch."""
        super().set_epoch(epoch)
        self._of_epoch = Permutation(self.size, [self._seed, epoch])

    def at(self, positions: npt.ArrayLike) -> Numbers:
        """The rows at these positions of the order."""
        return self._of_epoch.at(positions)

    def positions(self, rows: npt.ArrayLike) -> Numbers:
        """The inverse of `at`."""
        return self._of_epoch.positions(rows)


class Grouped(RowOrder):
    """An order in which rows of similar lengths follow each other: each of its parts is shuffled, then sorted.

    The longest row comes first, so that a lack of memory shows at once.

    Args:
        lengths: tokens of each row; 4 bytes a row.
        step: the rows of an optimizer step, over all processes.
        seed: of the data.
    """

    def __init__(self, lengths: npt.NDArray[np.int32], step: int, seed: int) -> None:
        super().__init__(len(lengths))
        self._lengths, self._shuffled = lengths, Shuffled(self.size, seed)
        self._part = step * max(min(self.size // (step * 4), GROUPED_STEPS), 1)
        self._longest = int(np.argmax(lengths)) if self.size else 0
        self._sorted = functools.lru_cache(2)(self._sort)

    def set_epoch(self, epoch: int) -> None:
        """Other groups in each epoch."""
        super().set_epoch(epoch)
        self._shuffled.set_epoch(epoch)
        self._sorted.cache_clear()

    def at(self, positions: npt.ArrayLike) -> Numbers:
        """The rows at these positions of the order."""
        positions = np.array(positions, np.int64)
        first = int(self._shuffled.positions([self._longest])[0]) // self._part * self._part
        beginning, longest = positions == 0, positions == first
        positions[beginning], positions[longest] = first, 0
        parts = positions // self._part
        rows = np.empty_like(positions)
        for part in np.unique(parts).tolist():
            here = parts == part
            rows[here] = self._sorted(part)[positions[here] - part * self._part]
        return rows

    def _sort(self, part: int) -> Numbers:
        start = part * self._part
        rows = self._shuffled.at(np.arange(start, min(start + self._part, self.size)))
        found: Numbers = rows[np.argsort(-self._lengths[rows], kind="stable")]
        return found


def token_lengths(rows: Any) -> npt.NDArray[np.int32]:
    """The number of tokens of each row, read without its tokens if the rows are an Arrow data set.

    Args:
        rows: a data set whose rows have ``input_ids``.
    """
    from datasets import Dataset

    lengths = np.empty(len(rows), np.int32)
    if not isinstance(rows, Dataset):
        for number in range(len(rows)):
            lengths[number] = len(rows[number]["input_ids"])
        return lengths
    import pyarrow.compute

    start = 0
    for table in rows.select_columns(["input_ids"]).with_format("arrow").iter(BLOCK):
        lengths[start : start + len(table)] = pyarrow.compute.list_value_length(table["input_ids"]).to_numpy()
        start += len(table)
    return lengths
