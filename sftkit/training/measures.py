# ruff: noqa: N803, N806 (suffixes are shapes)
"""Values measured while training, summed on the device: the host waits for them only when they are logged."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger("sftkit")

TOKENS, TRAINED, LOSS, WEIGHT, AUXILIARY, STEPS = "tokens", "trained", "loss", "weight", "auxiliary", "steps"
MEASURE = "measure "  # before the names of further sums
BY_SOURCE = "by source"  # ``[sources, 3]``: loss times weight, weight, tokens
TRAINED_TOKENS, TRAINED_WEIGHT = "trained_tokens", "trained_weight"  # up to a log entry
SUMS = "measures_{}.json"  # of a process, in a checkpoint


class Measures:
    """Sums over the micro-batches since the last log entry, and the mean loss of the whole run.

    Args:
        sources: the names of the sources of the data, if there are several.
        sums: those since the last log entry of the run that is continued, of this process.
    """

    def __init__(self, sources: Sequence[str] = (), sums: Mapping[str, Any] | None = None) -> None:
        self._sources = list(sources)
        self._sums: dict[str, Any] = dict(sums or {})
        self._since: float | None = None
        self._warned = False
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

    def add(self, tokens: Any, trained: int, loss: Any, weight: Any, measures: Mapping[str, Any]) -> None:
        """Add a micro-batch.

        Args:
            tokens: the number of its tokens without padding.
            trained: the number of its trained tokens.
            loss: the sum of their losses times their weights.
            weight: the sum of their weights.
            measures: values of each trained token by name.
        """
        values = {TOKENS: tokens, TRAINED: trained, LOSS: loss, WEIGHT: weight}
        for name, value in (values | {MEASURE + name: each.sum() for name, each in measures.items()}).items():
            self._add(name, value)

    def _add(self, name: str, value: Any) -> None:
        if name not in self._sums and torch.is_tensor(value):
            value = value.to(_widest(value.device))
        self._sums[name] = self._sums.get(name, 0) + value

    def add_auxiliary(self, loss: torch.Tensor, steps: float) -> None:
        """Add what a micro-batch adds to the loss besides the losses of tokens, and its part of the step."""
        self._add(AUXILIARY, loss.detach())
        self._add(STEPS, steps)

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
        if not self._sources or not len(losses_K):
            return
        device, number = losses_K.device, len(self._sources)
        if sources_K is None:
            self._warn()
            self._add(BY_SOURCE, torch.tensor([[torch.nan, 0.0, 0.0]], device=device).expand(number, 3))
            return
        of_source_NK = sources_K.to(device) == torch.arange(number, device=device)[:, None]
        sums = [torch.where(of_source_NK, losses_K.detach(), 0.0).sum(1), of_source_NK.sum(1)]
        if weights_K is not None:
            sums.insert(1, torch.where(of_source_NK, weights_K.to(device), 0.0).sum(1))
        self._add(BY_SOURCE, torch.stack([*sums, *sums[1:]][:3], 1))

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("no loss by data source: the collator moves the tokens of rows with several sources")

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

    def log_entry(self, accelerator: Any, history: Sequence[Mapping[str, Any]], sharing: int = 1) -> dict[str, float]:
        """The values to log, over all processes; the sums and the clock start again.

        Args:
            accelerator: of the run.
            history: the log entries so far.
            sharing: how many processes have the same rows.

        Returns:
            Tokens per second without padding; the mean loss of the trained tokens, unless there were none, and the mean
            of each measure; the mean loss of each source as ``loss_NAME``; and what `totals` returns. Empty if there
            was no batch since the last entry.
        """
        if self._since is None:
            return {}
        totals, by_source = self._reduced(accelerator, sharing)
        rate = totals.pop(TOKENS) / max(time.perf_counter() - self._since, 1e-9)
        self._sums, self._since = {}, None
        entry = {"tokens_per_second": round(rate, 1), **self._totals(totals[TRAINED], by_source, history)}
        trained, loss, weight = (totals.pop(name) for name in (TRAINED, LOSS, WEIGHT))
        auxiliary, steps = totals.pop(AUXILIARY, 0.0), totals.pop(STEPS, 0.0) or 1.0
        if weight > 0:
            entry["loss"] = loss / weight + auxiliary / steps
        entry |= {name.removeprefix(MEASURE): total / max(trained, 1.0) for name, total in totals.items()}
        for name, (loss, weight, _) in by_source.items():
            if weight > 0 and loss == loss:
                entry[f"loss_{name}"] = loss / weight
        return entry

    def totals(self, accelerator: Any, history: Sequence[Mapping[str, Any]], sharing: int = 1) -> dict[str, float]:
        """What was trained so far, over all processes and also before the run was resumed.

        Args:
            accelerator: of the run.
            history: the log entries so far.
            sharing: how many processes have the same rows.

        Returns:
            The number of trained tokens as ``trained_tokens``, and that of each source as ``trained_tokens_NAME``; if
            tokens have weights, also the sum of those of each source, as ``trained_weight_NAME``.
        """
        totals, by_source = self._reduced(accelerator, sharing)
        return self._totals(totals.get(TRAINED, 0.0), by_source, history)

    def _totals(
        self, trained: float, by_source: Mapping[str, Sequence[float]], history: Sequence[Mapping[str, Any]]
    ) -> dict[str, float]:
        last = _last_entry(history)
        found: dict[str, float] = {TRAINED_TOKENS: last.get(TRAINED_TOKENS, 0) + int(trained)}
        weights: dict[str, float] = {}
        for name, (_, weight, tokens) in by_source.items():
            before = last.get(f"{TRAINED_TOKENS}_{name}", 0)
            found[f"{TRAINED_TOKENS}_{name}"] = before + int(tokens)
            weights[f"{TRAINED_WEIGHT}_{name}"] = last.get(f"{TRAINED_WEIGHT}_{name}", before) + weight
        return found if list(weights.values()) == list(found.values())[1:] else found | weights

    def _reduced(self, accelerator: Any, sharing: int) -> tuple[dict[str, float], dict[str, list[float]]]:
        """The sums over all processes, and those of each source."""
        names = [name for name in self._sums if name != BY_SOURCE]
        device = accelerator.device
        dtype = _widest(device)
        flat = [torch.as_tensor(self._sums[name], dtype=dtype, device=device).reshape(1) for name in names]
        by_source = self._sums.get(BY_SOURCE, torch.zeros(len(self._sources), 3))
        flat.append(torch.as_tensor(by_source, dtype=dtype, device=device).flatten())
        reduced = (accelerator.reduce(torch.cat(flat), reduction="sum") / sharing).tolist()
        firsts = range(len(names), len(reduced), 3)
        of_sources = {name: reduced[at : at + 3] for name, at in zip(self._sources, firsts, strict=True)}
        return dict(zip(names, reduced, strict=False)), of_sources

    def write(self, directory: str, process: int, sharing: Mapping[str, int]) -> None:
        """Write the sums since the last log entry into a checkpoint, if there are any.

        Args:
            directory: the checkpoint.
            process: the number of this process.
            sharing: the number of ``processes``, and how many are ``sharing`` the same rows.
        """
        sums = {name: value for name, value in self._sums.items() if name != TOKENS}  # the clock starts again
        if sums:
            plain = {name: value.tolist() if torch.is_tensor(value) else value for name, value in sums.items()}
            Path(directory, SUMS.format(process)).write_text(json.dumps({**sharing, "sums": plain}), encoding="utf-8")


def read_sums(directory: str, process: int, sharing: Mapping[str, int], device: torch.device) -> dict[str, Any]:
    """The sums since the last log entry that `Measures.write` wrote; other arguments as there.

    If other processes continue than have written them, the first one gets those of all.

    Args:
        directory: the checkpoint.
        process: the number of this process.
        sharing: the number of ``processes``, and how many are ``sharing`` the same rows.
        device: of the sums.
    """
    own = Path(directory, SUMS.format(process))
    paths = [own] if own.exists() else []
    written = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    if not all(each.items() >= sharing.items() for each in written) or not written:
        paths = sorted(Path(directory).glob(SUMS.format("*"))) if process == 0 else []
        written = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    found: dict[str, Any] = {}
    for each in written:
        factor = sharing["sharing"] / each["sharing"]
        for name, value in each["sums"].items():
            read = value if isinstance(value, int) else torch.tensor(value, dtype=_widest(device), device=device)
            found[name] = found.get(name, 0) + (read if factor == 1 else read * factor)
    return found


def trained_by_source(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a whole run has trained, from its log entries.

    Returns:
        The number of trained ``tokens``, and as ``sources`` that of each source as ``tokens``, with its ``loss`` in the
        last log entry that has one; empty without log entries.
    """
    last = _last_entry(history)
    if not last:
        return {}
    start, sources = f"{TRAINED_TOKENS}_", {}
    for name in (key.removeprefix(start) for key in last if key.startswith(start)):
        losses = (entry[f"loss_{name}"] for entry in reversed(history) if f"loss_{name}" in entry)
        sources[name] = {"tokens": last[start + name], "loss": next(losses, None)}
    return {"tokens": last[TRAINED_TOKENS], "sources": sources}


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


def _widest(device: torch.device) -> torch.dtype:
    """The type of a sum: double precision where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def _either(condition: torch.Tensor, first: Any, second: Any) -> torch.Tensor:
    first, second = (torch.as_tensor(value, device=condition.device) for value in (first, second))
    return torch.where(condition, first.to(second.dtype), second)


def or_one(divisor: torch.Tensor) -> torch.Tensor:
    """The divisor, or 1 if it is 0: then nothing is trained, and the dividend is 0 too."""
    return torch.where(divisor > 0, divisor, torch.ones_like(divisor))


def _last_entry(history: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The last log entry of the training; empty if there is none."""
    return next((entry for entry in reversed(history) if TRAINED_TOKENS in entry), {})
