"""Batches that are too large for the device: they are computed in micro-batches of half as many rows."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from sftkit.errors import OF_ONE_PROCESS, Problem, RunError
from sftkit.training.batches import micro_batches, rows_of

logger = logging.getLogger(OF_ONE_PROCESS)
T = TypeVar("T")


class RowLimit:
    """The number of rows that are computed at once: no limit at first, halved whenever memory runs out.

    Args:
        training: whether the batches are those of the training.
        obstacle: why batches of this run cannot be split; empty if they can.
    """

    def __init__(self, training: bool, obstacle: str) -> None:
        self._key = f"train.per_device_{'train' if training else 'eval'}_batch_size"
        self._preserved = "gradients" if training else "loss"
        self._fix = "lower it" + ", and raise train.gradient_accumulation_steps by the same factor" * training
        self._obstacle = obstacle
        self._rows: int | None = None

    def run(
        self,
        compute: Callable[[list[dict[str, Any]]], T],
        inputs: dict[str, Any],
        start_over: Callable[[], None] | None = None,
    ) -> T:
        """What ``compute`` returns for the micro-batches of a batch; if memory runs out, for smaller ones.

        Args:
            start_over: called before the next try, to undo what the failed one left.

        Raises:
            RunError: if the batch cannot be split.
        """
        while True:
            try:
                return compute(list(micro_batches(inputs, self._rows or rows_of(inputs))))
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                self._halve(inputs, error)
            # Outside of the except clause: the exception holds the tensors of the failed call.
            gc.collect()
            clear_device_cache()
            if start_over is not None:
                start_over()

    def _halve(self, inputs: dict[str, Any], error: Exception) -> None:
        rows = min(rows_of(inputs), self._rows or rows_of(inputs))
        columns = inputs["input_ids"].shape[1]
        if self._obstacle:
            what = f"out of memory with {rows} rows of {columns} tokens; {self._obstacle}"
            raise RunError(Problem(what, self._key, self._fix)) from error
        if rows == 1:
            fix = "lower data.max_length, or see `sftkit docs memory` for other ways to save memory"
            raise RunError(Problem(f"out of memory with a single row of {columns} tokens", self._key, fix)) from error
        self._rows = -(-rows // 2)
        logger.warning(
            "out of memory with %d rows of %d tokens: computing %d rows at once from now on, with the same %s (%s)",
            *(rows, columns, self._rows, self._preserved, self._key),
        )


class Window:
    """An accumulation window, whose gradients are all computed again if memory runs out.

    A backward that fails may have added a part of its gradients, so those of the whole window are dropped.
    """

    def __init__(self, limit: RowLimit) -> None:
        self._limit = limit
        self._done: list[dict[str, Any]] = []

    def add(
        self, inputs: dict[str, Any], backward: Callable[[list[dict[str, Any]]], T], forget: Callable[[], None]
    ) -> T:
        """Add the gradients of a batch, and return what ``backward`` does.

        Args:
            backward: adds the gradients of micro-batches.
            forget: drops the gradients and measures of the window.
        """

        def start_over() -> None:
            forget()
            done, self._done = self._done, []
            for earlier in done:
                self.add(earlier, backward, forget)

        made = self._limit.run(backward, inputs, start_over)
        self._done.append(inputs)
        return made
