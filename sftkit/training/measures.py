# ruff: noqa: N803, N806 (suffixes are shapes)
"""Values measured while training, summed on the device: the host waits for them only when they are logged."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

BY_SOURCE = "by source"


class Measures:
    """Sums over the micro-batches since the last log entry, and the mean loss of the whole run.

    Args:
        sources: the names of the sources of the data, if there are several.
    """

    def __init__(self, sources: Sequence[str] = ()) -> None:
        self._sources = list(sources)
        self._sums: dict[str, Any] = {}
        self._since: float | None = None
        self._loss: Any = 0.0
        self._steps: Any = 0.0
        self._before_window: tuple[dict[str, Any], Any, Any] = ({}, 0.0, 0.0)

    def begin_window(self) -> None:
        """Start an accumulation window."""
        self._before_window = (dict(self._sums), self._loss, self._steps)

    def repeat_window(self) -> None:
        """Start the window again: drop what it has added."""
        self._sums = dict(self._before_window[0])

    def drop_window(self, drop: torch.Tensor) -> None:
        """Drop what the window has added if ``drop`` (a scalar on the device) is true."""
        sums, loss, steps = self._before_window
        self._sums = {name: _either(drop, sums.get(name, 0), value) for name, value in self._sums.items()}
        self._loss, self._steps = _either(drop, loss, self._loss), _either(drop, steps, self._steps)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock: the rate does not count evaluations and checkpoints."""
        began = time.perf_counter()
        try:
            yield
        finally:
            if self._since is not None:
                self._since += time.perf_counter() - began

    def begin_batch(self) -> None:
        """Start the clock, if this is the first batch after a log entry."""
        if self._since is None:
            self._since = time.perf_counter()

    def add(self, tokens: Any, trained: int, measures: dict[str, Any]) -> None:
        """Add a micro-batch: its tokens, its trained tokens, and values for each trained token by name."""
        values = {"tokens": tokens, "trained": trained, **{name: each.sum() for name, each in measures.items()}}
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0) + value

    def add_sources(
        self, losses_K: torch.Tensor, weights_K: torch.Tensor | None, sources_K: torch.Tensor | None
    ) -> None:
        """Add the losses of a micro-batch's trained tokens, times their weights, to those of their sources.

        Args:
            losses_K: the loss of each token times its weight.
            weights_K: the weights; None if all are 1.
            sources_K: the number of the source of each token; None if that is not known, and then neither is the mean
                loss of any source up to the next log entry.
        """
        if not self._sources:
            return
        device, number = losses_K.device, len(self._sources)
        weights_K = torch.ones_like(losses_K) if weights_K is None else weights_K.to(device)
        if sources_K is None:
            sums_N2 = torch.full((number, 2), torch.nan, device=device)
        else:
            of_source_NK = sources_K.to(device) == torch.arange(number, device=device)[:, None]
            sums = [torch.where(of_source_NK, values_K, 0.0).sum(1) for values_K in (losses_K.detach(), weights_K)]
            sums_N2 = torch.stack(sums, 1)
        self._sums[BY_SOURCE] = self._sums.get(BY_SOURCE, 0) + sums_N2

    def add_loss(self, loss: Any, steps: float) -> None:
        """Add a batch's share of the loss of its optimizer step, and its share of the step."""
        self._loss = self._loss + loss
        self._steps = self._steps + steps

    def mean_loss(self, accelerator: Any) -> float | None:
        """The mean loss over the steps of this run and all processes; None before the first step."""
        steps = float(self._steps)
        if not steps:
            return None
        return float(accelerator.reduce(self._loss, reduction="mean").item() / steps)

    def log_entry(self, accelerator: Any, trained_before: int, sharing: int = 1) -> dict[str, float]:
        """The values to log, over all processes; the sums and the clock start again.

        Args:
            accelerator: of the run.
            trained_before: trained tokens up to the last log entry.
            sharing: how many processes have the same rows.

        Returns:
            Tokens per second without padding, trained tokens so far, the mean of each measure, and the mean loss of
            each source as ``loss_NAME``; empty if there was no batch since the last entry.
        """
        if self._since is None:
            return {}
        names = list(self._sums)
        device = accelerator.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        by_source = torch.as_tensor(self._sums.get(BY_SOURCE, ()), dtype=dtype, device=device).flatten()
        names = [name for name in names if name != BY_SOURCE]
        sums = torch.stack([torch.as_tensor(self._sums[name], dtype=dtype, device=device) for name in names])
        reduced = (accelerator.reduce(torch.cat([sums, by_source]), reduction="sum") / sharing).tolist()
        totals, of_sources = dict(zip(names, reduced, strict=False)), reduced[len(names) :]
        tokens, trained = totals.pop("tokens"), totals.pop("trained")
        rate = tokens / max(time.perf_counter() - self._since, 1e-9)
        self._sums, self._since = {}, None
        means = {name: total / max(trained, 1.0) for name, total in totals.items()}
        for name, loss, weight in zip(self._sources, of_sources[::2], of_sources[1::2], strict=False):
            if weight > 0:
                means[f"loss_{name}"] = loss / weight
        return {"tokens_per_second": round(rate, 1), "trained_tokens": trained_before + int(trained), **means}


def peak_memory(accelerator: Any) -> int:
    """The most memory so far of any process of a run in bytes: of its device, or of the process on a CPU."""
    kind = accelerator.device.type
    if kind == "cpu":
        peak = _peak_of_process()
    elif kind == "mps":
        peak = torch.mps.driver_allocated_memory()
    else:
        peak = torch.get_device_module(kind).max_memory_allocated(accelerator.device)
    if accelerator.num_processes == 1:
        return int(peak)
    return int(accelerator.gather(torch.tensor([peak], device=accelerator.device)).max())


def _peak_of_process() -> int:
    """The most memory that this process has had so far (resident set), in bytes."""
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _either(condition: torch.Tensor, first: Any, second: Any) -> torch.Tensor:
    first, second = (torch.as_tensor(value, device=condition.device) for value in (first, second))
    return torch.where(condition, first.to(second.dtype), second)


def or_one(divisor: torch.Tensor) -> torch.Tensor:
    """The divisor, or 1 if it is 0: then nothing is trained, and the dividend is 0 too."""
    return torch.where(divisor > 0, divisor, torch.ones_like(divisor))
