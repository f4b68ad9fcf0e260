"""Times a Trainer's steps, and ends the run after the last."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import torch
from transformers import TrainerCallback


class EnoughError(Exception):
    """Every measured step is done; the rest of the Trainer's work is skipped."""


class Watch(TrainerCallback):
    """Times each step from the end of the last, loading included; the device is idle at both ends.

    Args:
        warmup: steps before the first that counts.
        steps: steps that count.
        device: ``cuda`` or ``cpu``.
        profiler: started after those.
        profiled: steps under it.
    """

    def __init__(self, warmup: int, steps: int, device: str, profiler: Any = None, profiled: int = 0) -> None:
        self._warmup, self._last, self._device = warmup, warmup + steps, device
        self._profiler, self.total = profiler, warmup + steps + profiled
        self._done = 0
        self._since = 0.0
        self.seconds: list[float] = []
        self.profiled_seconds: list[float] = []
        self.losses: list[float] = []
        self.rows: Any = None
        self.attention = ""
        self.peak_gib = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.rows = rest["train_dataloader"].dataset
        self.attention = rest["model"].config._attn_implementation

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self.step()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **rest: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))
        if self._done == self.total:
            raise EnoughError

    def step(self) -> None:
        """Record the end of a step."""
        if self._device == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._done += 1
        if self._warmup < self._done <= self._last:
            self.seconds.append(now - self._since)
        elif self._done > self._last:
            self.profiled_seconds.append(now - self._since)
        if self._done == self._warmup and self._device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        if self._done == self._last:
            self.peak_gib = peak_gib(self._device)
            if self._profiler is not None:
                self._profiler.start()
        if self._done == self.total > self._last:
            self._profiler.stop()
        self._since = time.perf_counter()


def peak_gib(device: str) -> float:
    """Peak memory: of tensors on a GPU, of the process on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
