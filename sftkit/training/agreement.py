"""What the processes of a run agree on at the end of each step, on the host: no step waits for the device."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


class Agreement:
    """The largest of the numbers that the processes give at the same point of the run.

    The numbers are exchanged while the next step computes, so `exchange` returns what was given at the point before.

    Args:
        timeout: seconds after which a process that does not answer is an error.
    """

    def __init__(self, timeout: float) -> None:
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout)) if several else None
        self._pending: tuple[Any, torch.Tensor] | None = None

    def exchange(self, number: int) -> int:
        """Give a number, and get the largest of those that were given before; in a single process the number itself."""
        if self._group is None:
            return number
        agreed = self.finish()
        value = torch.tensor(number)
        self._pending = dist.all_reduce(value, op=dist.ReduceOp.MAX, group=self._group, async_op=True), value
        return agreed

    def finish(self) -> int:
        """Get the largest of the numbers that were given last; 0 if there are none."""
        if self._pending is None:
            return 0
        (work, value), self._pending = self._pending, None
        work.wait()
        return int(value)

    def largest(self, number: int) -> int:
        """The largest of the numbers that all processes give now."""
        self.finish()
        self.exchange(number)
        return number if self._group is None else self.finish()
