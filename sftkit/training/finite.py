"""Losses, gradients and weights that are not finite: noticed without waiting for the device, and never saved."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from accelerate.utils import gather_object

from sftkit.errors import Problem, TrainingError

logger = logging.getLogger("sftkit")

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SHOWN = 8  # rows that a message lists


@dataclass
class Step:
    """An optimizer step that the host has not looked at yet.

    Attributes:
        number: its number, from 1.
        losses: the loss of each batch, on the device.
        rows: the rows of each batch, as places in the prepared data; empty if they are unknown.
        failed: 1 on the device if the loss or the gradient norm of any process is not finite, else 0.
    """

    number: int
    losses: list[Any] = field(default_factory=list)
    rows: list[list[int]] = field(default_factory=list)
    failed: Any = None


class FiniteSteps:
    """Notices steps whose loss or gradient norm is not finite.

    A flag on the device is all that a step computes. The host reads the flags of several steps at once: before a log
    entry, an evaluation or a save, for which it waits in any case. All processes have the same flags. With ``skip``, a
    failed step leaves weights, optimizer state and measures as they were. A fused optimizer leaves them by itself, from
    the flag; for others, the host reads the flag in each step.

    Under fp16, gradients that are not finite are left to the loss scaler, which skips the step and lowers its scale.

    Args:
        policy: ``stop`` or ``skip``.
        limit: with ``skip``, the most steps that may be skipped.

    Attributes:
        skipped: the number of steps that were skipped.
    """

    def __init__(self, policy: Literal["stop", "skip"] = "stop", limit: int = 10) -> None:
        self._policy, self._limit = policy, limit
        self._step: Step | None = None
        self._unread: list[Step] = []
        self._loss_before: Any = None
        self._lately: list[int] = []  # of each step since the last log entry, whether it was skipped
        self.skipped = 0

    def begin(self, trainer: Any) -> None:
        """Start a step, before its first batch."""
        self._step = Step(trainer.state.global_step + 1)
        self._loss_before = trainer._tr_loss.clone() if self._policy == "skip" else None

    def add(self, loss: Any, rows: list[int]) -> None:
        """Add the loss of a batch, and the batch's rows."""
        if self._step is not None:
            self._step.losses.append(loss.detach())
            self._step.rows.append(rows)

    def end(self, trainer: Any, model: Any, norm: Any) -> None:
        """End the step, before the optimizer's.

        Args:
            trainer: the trainer.
            model: the model as it is wrapped.
            norm: the norm of the gradients of all processes; None if it is unknown.
        """
        step, self._step = self._step, None
        if step is None or not step.losses:
            return
        device, scaled = trainer.args.device, trainer.accelerator.scaler is not None or trainer.args.fp16
        finite = torch.stack(step.losses).isfinite().all()
        if norm is not None and not scaled:
            norm = norm.full_tensor() if hasattr(norm, "full_tensor") else torch.as_tensor(norm)
            finite = finite & norm.to(device).isfinite().all()
        step.failed = (~finite).to(torch.float32)
        if trainer.args.world_size > 1:
            torch.distributed.all_reduce(step.failed, op=torch.distributed.ReduceOp.MAX)
        self._unread.append(step)
        if self._policy == "skip":
            self._skip(trainer, model, step.failed)

    def _skip(self, trainer: Any, model: Any, failed: Any) -> None:
        """Let the step change nothing if it failed."""
        optimizer = trainer.optimizer.optimizer
        device_side = getattr(optimizer, "_step_supports_amp_scaling", False) and not trainer.sharded
        if device_side and trainer.accelerator.scaler is None:
            optimizer.found_inf = failed  # as a GradScaler sets it
        elif failed.item():
            model.zero_grad()  # without gradients, the optimizer passes over the weights
        trainer._tr_loss.copy_(torch.where(failed > 0, self._loss_before, trainer._tr_loss))
        trainer.measures.drop_window(failed > 0)

    def check(self, trainer: Any) -> None:
        """Read the flags of the steps since the last check; called by all processes at the same point of the run.

        Raises:
            TrainingError: if a step failed, or, with ``skip``, too many did.
        """
        steps, self._unread = self._unread, []
        flags = torch.stack([step.failed for step in steps]).tolist() if steps else []
        self._lately += map(int, flags)
        for step, failed in zip(steps, flags, strict=True):
            if not failed:
                continue
            problem = _problem(step, trainer)
            if self._policy == "stop":
                raise TrainingError(problem)
            if self.skipped == self._limit:
                what = f"run.max_skipped is {self._limit}, and one more step failed: {problem.what}"
                fix = "lower train.learning_rate, correct the rows, or raise the limit"
                raise TrainingError(Problem(what, "training", fix))
            self.skipped += 1
            if trainer.is_world_process_zero():
                logger.warning("%s: skipped (%d of at most %d)", problem.what, self.skipped, self._limit)

    def correct(self, logs: dict[str, float]) -> None:
        """Make the loss of a log entry the mean of the steps that were not skipped; changes the entry."""
        steps, skipped = len(self._lately), sum(self._lately)
        self._lately = []
        if skipped:
            logs["loss"] = logs["loss"] * steps / (steps - skipped) if skipped < steps else float("nan")
            logs["skipped_steps"] = self.skipped


def _problem(step: Step, trainer: Any) -> Problem:
    """What failed, in which step, rows and process; called by all processes."""
    values = torch.stack(step.losses).float().tolist()
    failed = [index for index, value in enumerate(values) if not torch.isfinite(torch.tensor(value))]
    rows = [row for index, found in enumerate(step.rows) if index in failed or not failed for row in found]
    mine = (trainer.args.process_index, [values[index] for index in failed], rows)
    everywhere: list[Any] = gather_object([mine]) if trainer.args.world_size > 1 else [mine]
    everywhere = everywhere[:: trainer.engine.sharing]  # processes that share a model have the same rows
    losses = [loss for _, found, _ in everywhere for loss in found]
    guilty = [item for item in everywhere if item[1]] or everywhere
    what = f"the loss is {losses[0]}" if losses else "the norm of the gradients is not finite"
    places = "; ".join(_rows(rows, process if len(everywhere) > 1 else None) for process, _, rows in guilty)
    first = min((row for _, _, found in guilty for row in found), default=None)
    preview = "" if first is None else f", look at the rows (sftkit preview ... --row {first})"
    fix = f"lower train.learning_rate{preview}, or set run.on_nan: skip"
    return Problem(f"{what} in step {step.number} ({places})", "training", fix)


def _rows(rows: list[int], process: int | None) -> str:
    shown = ", ".join(map(str, rows[:SHOWN])) + f" and {len(rows) - SHOWN} more" * (len(rows) > SHOWN)
    where = f"row{'s' * (len(rows) > 1)} {shown} of the prepared data" if rows else "rows unknown"
    return where if process is None else f"process {process}: {where}"


def require_finite(trainer: Any, alone: bool = False) -> None:
    """Check trained weights and optimizer state before they are saved; called by all processes at the same point.

    Args:
        trainer: the trainer.
        alone: only this process's; then the others need not call it.

    Raises:
        TrainingError: if a value is not finite.
    """
    # The largest magnitude of a tensor needs no memory, and is NaN if any value is.
    found: dict[Any, list[tuple[str, Any]]] = {}
    for name, tensor in _state(trainer):
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        if local.dtype in FLOATS and local.numel():
            found.setdefault(local.device, []).append((name, torch.linalg.vector_norm(local, float("inf"))))
    wrong = ""
    for items in found.values():
        finite = torch.stack([norm.float() for _, norm in items]).isfinite().tolist()
        wrong = wrong or next((name for (name, _), good in zip(items, finite, strict=True) if not good), "")
    names: list[str] = gather_object([wrong]) if trainer.args.world_size > 1 and not alone else [wrong]
    if wrong := next(filter(None, names), ""):
        what = f"after step {trainer.state.global_step}, {wrong} is not finite: it is not saved"
        raise TrainingError(
            Problem(what, "training", "lower train.learning_rate, and start from an earlier checkpoint")
        )


def _state(trainer: Any) -> Iterator[tuple[str, Any]]:
    for name, weight in trainer.model.named_parameters():
        if weight.requires_grad:
            yield f"the weight {name}", weight.detach()
    state = getattr(trainer.optimizer, "state", None) or {}
    for values in list(state.values()):
        for name, value in values.items() if isinstance(values, dict) else ():
            if torch.is_tensor(value):
                yield f"the optimizer's {name}", value
