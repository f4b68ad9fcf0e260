"""Batches of training rows: each process computes its own, and none is trained twice in an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from sftkit.data.columns import IGNORE_INDEX
from sftkit.errors import ConfigError, Problem
from sftkit.training.batches import FRACTION, POSITIONS
from sftkit.training.order import BLOCK, RowOrder
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
        self._next = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader when an epoch begins."""
        self.order.set_epoch(epoch)

    def seek(self, batches: int) -> None:
        """Let the next iteration begin after a number of batches; nothing is computed for them."""
        self._next = batches

    def __len__(self) -> int:
        whole, rest = divmod(len(self.order), self.share.together)
        return whole + (rest > 0 and not self._drop)

    @property
    def fills_in(self) -> bool:
        """Whether a batch of some replica has a row to fill in."""
        rest = len(self.order) % self.share.together
        return 0 < rest < self.share.replicas and not self._drop

    def __iter__(self) -> Iterator[list[int]]:
        start, self._next = self._next, 0
        share, whole = self.share, len(self.order) // self.share.together
        own = share.replica * share.size + np.arange(share.size)
        block = max(BLOCK // share.size, 1)
        for first in range(start, whole, block):
            batches = np.arange(first, min(first + block, whole))
            rows = self.order.at((batches[:, None] * share.together + own).ravel())
            yield from rows.reshape(-1, share.size).tolist()
        if start < len(self) > whole:
            yield self._rest(whole * share.together)

    def _rest(self, first: int) -> list[int]:
        begin, end = self.share.of(len(self.order) - first)
        if begin == end:
            return [-1 - int(self.order.at([first])[0])]
        rows: list[int] = self.order.at(np.arange(first + begin, first + end)).tolist()
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

    def __len__(self) -> int:
        whole, rest = divmod(len(self.order), self.share.step)
        return (whole + (rest > 0 and not self._drop)) * self.share.accumulation

    @property
    def fills_in(self) -> bool:
        """Whether a batch of some replica has a row to fill in."""
        rest = len(self.order) % self.share.step
        return 0 < rest < self.share.replicas * self.share.accumulation and not self._drop

    def __iter__(self) -> Iterator[list[int]]:
        start, self._next = self._next, 0
        step, skipped = divmod(start, self.share.accumulation)
        for number in range(step, len(self) // self.share.accumulation):
            yield from self._batches(number)[skipped:]
            skipped = 0

    def _batches(self, step: int) -> list[list[int]]:
        from transformers.trainer_pt_utils import BatchRebalanceSampler

        share, first = self.share, step * self.share.step
        rows = self.order.at(np.arange(first, min(first + share.step, len(self.order))))
        missing = share.replicas * share.accumulation - len(rows)
        lengths = self._lengths[rows].tolist()
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
        return batch


def with_batches(loader: DataLoader[Any], batches: ReplicaBatches) -> DataLoader[Any]:
    """The loader with the batches of this process; nothing is learned from rows to fill in.

    Args:
        loader: from the Trainer.
        batches: those of this process.
    """
    options = {name: getattr(loader, name) for name in _OPTIONS}
    if batches.fills_in:
        options |= {"dataset": _Rows(loader.dataset), "collate_fn": _Untrained(loader.collate_fn)}
    return DataLoader(batch_sampler=batches, **options)
