"""What is measured while training, summed up on the device: it is waited for when it is logged, and not before."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Measures:
    """Sums over the micro-batches since the last log."""

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._kept: dict[str, Any] = {}
        self._since: float | None = None

    def begin_window(self) -> None:
        """An accumulation window begins."""
        self._kept = dict(self._sums)

    def repeat_window(self) -> None:
        """The window begins again: what it has added is taken back."""
        self._sums = dict(self._kept)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The clock stands still: evaluations and checkpoints are not in the rate."""
        began = time.perf_counter()
        try:
            yield
        finally:
            if self._since is not None:
                self._since += time.perf_counter() - began

    def begin_batch(self) -> None:
        """The clock starts with the first batch behind a log."""
        if self._since is None:
            self._since = time.perf_counter()

    def add(self, tokens: Any, trained: int, measures: dict[str, Any]) -> None:
        """Take in a micro-batch: its tokens, its trained ones, and values of each trained token by name."""
        values = {"tokens": tokens, "trained": trained, **{name: each.sum() for name, each in measures.items()}}
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0) + value

    def told(self, accelerator: Any, trained_before: int) -> dict[str, float]:
        """Tokens a second (padding not counted), trained tokens so far, and the means of the measures."""
        if self._since is None:
            return {}
        names = list(self._sums)
        device = accelerator.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        sums = torch.stack([torch.as_tensor(self._sums[name], dtype=dtype, device=device) for name in names])
        totals = dict(zip(names, accelerator.reduce(sums, reduction="sum").tolist(), strict=True))
        tokens, trained = totals.pop("tokens"), totals.pop("trained")
        rate = tokens / max(time.perf_counter() - self._since, 1e-9)
        self._sums, self._kept, self._since = {}, {}, None
        means = {name: total / max(trained, 1.0) for name, total in totals.items()}
        return {"tokens_per_second": round(rate, 1), "trained_tokens": trained_before + int(trained), **means}
