"""Times a Trainer's steps, and ends the run behind the last."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch
from transformers import TrainerCallback


class EnoughError(Exception):
    """Every step that is measured is done: what a Trainer does behind them is left out."""


class Watch(TrainerCallback):
    """Times each step from the end of the one before, loading included, with the device at rest at each end.

    Args:
        warmup: steps before the first that counts.
        steps: that count.
        device: ``cuda`` or ``cpu``.
    """

    def __init__(self, warmup: int, steps: int, device: str) -> None:
        self._warmup, self._steps, self._device = warmup, steps, device
        self._done = 0
        self._since = 0.0
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.rows: Any = None
        self.peak_gib = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.rows = given["train_dataloader"].dataset

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self.step()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **given: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))
        if self._done == self._warmup + self._steps:
            raise EnoughError

    def step(self) -> None:
        """A step is done."""
        if self._device == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._done += 1
        if self._done > self._warmup:
            self.seconds.append(now - self._since)
        elif self._done == self._warmup and self._device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        if self._done == self._warmup + self._steps:
            self.peak_gib = peak_gib(self._device)
        self._since = now


def peak_gib(device: str) -> float:
    """Most memory held: of the GPU by tensors, of a CPU by the process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
