"""Batches of training rows: each process computes its own, and none is trained twice in an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from sftkit.checkpoints.manifest import details_of
from sftkit.data.columns import IGNORE_INDEX
from sftkit.errors import ConfigError, Problem
from sftkit.training.batches import FRACTION, POSITIONS, VALUES
from sftkit.training.order import BLOCK, RowOrder
from sftkit.training.permutation import Numbers
from sftkit.training.targets import trained_positions

FILL_IN = "fill_in"  # of an example that is there so that its process has a batch
_OPTIONS = (
    "dataset", "collate_fn", "num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context",
    "generator", "prefetch_factor", "persistent_workers", "pin_memory_device", "in_order",
)  # fmt: skip


@dataclass(frozen=True)
class Share:
    """Which of the rows of a step a process takes.

    Attributes:
        size: rows of a batch.
        replicas: how many groups of processes work on different rows.
        replica: the number of this process's group.
        accumulation: batches of a step.
    """

    size: int
    replicas: int = 1
    replica: int = 0
    accumulation: int = 1

    @property
    def together(self) -> int:
        """The rows of the batches that all replicas compute at the same time."""
        return self.size * self.replicas

    @property
    def step(self) -> int:
        """The rows of an optimizer step."""
        return self.together * self.accumulation

    def of(self, number: int) -> tuple[int, int]:
        """Start and end of this replica's share of some rows; shares differ by at most one."""
        each, more = divmod(number, self.replicas)
        start = self.replica * each + min(self.replica, more)
        return start, start + each + (self.replica < more)


class Position(NamedTuple):
    """How far the rows are trained.

    Attributes:
        step: the number of steps.
        epoch: the epoch, from 0.
        rows: how many rows of this epoch, over all replicas.
    """

    step: int
    epoch: int
    rows: int

    @classmethod
    def read(cls, checkpoint: str) -> Position | None:
        """That of a checkpoint; None if it has none."""
        found = details_of(Path(checkpoint)).get("position")
        return cls(*found) if found else None


class ReplicaBatches(Sampler[list[int]]):
    """The batches of this process, in the order of the rows: a step has the same rows on any number of replicas.

    The last batches of an epoch are smaller, and differ by at most one row. Where rows are fewer than replicas, those
    without a row get one to fill in, as ``-1 - row``, from which nothing is learned: see `with_batches`.

    Args:
        order: the order of the rows.
        share: what this process takes of them.
        drop_last: leave out the last rows if they are not whole batches for all replicas.
    """

    def __init__(self, order: RowOrder, share: Share, drop_last: bool = False) -> None:
        self.order, self.share, self._drop = order, share, drop_last
        self._first = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader when an epoch begins."""
        self.order.set_epoch(epoch)

    def seek(self, rows: int) -> None:
        """Let the next iteration begin after a number of rows, over all replicas; nothing is computed for them."""
        self._first = rows

    def rows(self, batches: int) -> int:
        """The rows of the first batches of all replicas."""
        return min(batches * self.share.together, self._end)

    def before(self, rows: int) -> int:
        """The number of batches that do not reach beyond the first rows."""
        return rows // self.share.together

    @property
    def _end(self) -> int:
        """The number of rows that are not left out."""
        size = len(self.order)
        return size - size % self.share.together if self._drop else size

    def __len__(self) -> int:
        return -(-self._end // self.share.together)

    def __iter__(self) -> Iterator[list[int]]:
        first, self._first = self._first, 0
        share, together = self.share, self.share.together
        start, whole = -(-first // together), self._end // together
        if first % together and first < self._end:
            yield self._part(first, min(start * together, self._end))
        own = share.replica * share.size + np.arange(share.size)
        block = max(BLOCK // share.size, 1)
        for number in range(start, whole, block):
            batches = np.arange(number, min(number + block, whole))
            rows = self.order.at((batches[:, None] * together + own).ravel())
            yield from rows.reshape(-1, share.size).tolist()
        if start <= whole < len(self):
            yield self._part(whole * together, self._end)

    def _part(self, start: int, end: int) -> list[int]:
        """This process's share of rows that are no whole batches."""
        low, high = self.share.of(end - start)
        if low == high:
            return [-1 - int(self.order.at([start])[0])]
        rows: list[int] = self.order.at(np.arange(start + low, start + high)).tolist()
        return rows


class Rebalanced(ReplicaBatches):
    """Batches of different sizes that take similar times: the rows of each step are divided by their lengths.

    Args:
        order: the order of the rows.
        share: what this process takes of them.
        drop_last: leave out the last rows if they are not those of a whole step.
        lengths: tokens of each row; 4 bytes a row.
    """

    def __init__(self, order: RowOrder, share: Share, drop_last: bool, lengths: npt.NDArray[np.int32]) -> None:
        super().__init__(order, share, drop_last)
        self._lengths = lengths

    @property
    def _end(self) -> int:
        size = len(self.order)
        return size - size % self.share.step if self._drop else size

    def rows(self, batches: int) -> int:
        """The rows of the steps of the first batches."""
        return min(batches // self.share.accumulation * self.share.step, self._end)

    def before(self, rows: int) -> int:
        """The number of batches of the steps that do not reach beyond the first rows."""
        return rows // self.share.step * self.share.accumulation

    def __len__(self) -> int:
        return -(-self._end // self.share.step) * self.share.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        first, self._first = self._first, 0
        while first < self._end:
            end = min((first // self.share.step + 1) * self.share.step, self._end)
            yield from self._batches(self.order.at(np.arange(first, end)))
            first = end

    def _batches(self, rows: Numbers) -> list[list[int]]:
        from transformers.trainer_pt_utils import BatchRebalanceSampler

        share, lengths = self.share, self._lengths[rows].tolist()
        missing = share.replicas * share.accumulation - len(rows)
        if missing > 0:
            rows, lengths = np.append(rows, np.full(missing, -1 - rows[0])), lengths + lengths[:1] * missing
        own = BatchRebalanceSampler(
            lengths, len(rows), share.replicas, share.accumulation, shuffle=False, rank=share.replica
        )
        return [rows[batch].tolist() for batch in own]


@dataclass(frozen=True)
class _Rows(Dataset):
    """Rows of which those to fill in are marked."""

    rows: Any

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        fetch = getattr(self.rows, "__getitems__", None)
        wanted = [index if index >= 0 else -1 - index for index in indices]
        rows = fetch(wanted) if fetch else [self.rows[index] for index in wanted]
        return [row if index >= 0 else {**row, FILL_IN: True} for row, index in zip(rows, indices, strict=True)]


@dataclass(frozen=True)
class _Untrained:
    """A collator that gives a batch of rows to fill in no label to learn from."""

    collator: Callable[[list[Any]], Any]

    def __call__(self, examples: list[dict[str, Any]]) -> Any:
        """The batch."""
        fills_in = any(FILL_IN in example for example in examples)
        if not fills_in:
            return self.collator(examples)
        batch = self.collator([{name: value for name, value in each.items() if name != FILL_IN} for each in examples])
        names = [name for name in ("labels", "shift_labels") if name in batch]
        if not names:
            what, fix = "a process has no row in the last step, and its batch no labels", "set it to true"
            raise ConfigError(Problem(what, "train.dataloader_drop_last", fix))
        for name in names:
            batch[name] = torch.full_like(torch.as_tensor(batch[name]), IGNORE_INDEX)
        if POSITIONS in batch:
            batch[POSITIONS], batch[FRACTION] = trained_positions(batch["labels"]), 0.0
        if VALUES in batch:
            batch[VALUES] = {name: value[:0] for name, value in batch[VALUES].items()}
        return batch


def with_batches(loader: DataLoader[Any], batches: ReplicaBatches) -> DataLoader[Any]:
    """The loader with the batches of this process; nothing is learned from rows to fill in.

    Args:
        loader: from the Trainer.
        batches: those of this process.
    """
    options = {name: getattr(loader, name) for name in _OPTIONS}
    if batches.share.replicas > 1 or isinstance(batches, Rebalanced):
        options |= {"dataset": _Rows(loader.dataset), "collate_fn": _Untrained(loader.collate_fn)}
    return DataLoader(batch_sampler=batches, **options)
