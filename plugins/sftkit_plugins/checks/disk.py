"""Checks the disk space that a run needs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sftkit.api import Verdict, free_bytes, is_adapter, model_shape, size_text, train_value

if TYPE_CHECKING:
    from sftkit.api import PreparedRun
    from sftkit_plugins.checks.plan import Plan

OPTIMIZER = 8  # bytes per trained parameter: AdamW's two moments in float32
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 4}


def disk_verdicts(run: PreparedRun, plan: Plan) -> Iterator[Verdict]:
    """Whether checkpoints and the model fit on the disk."""
    parameters = _parameters(run)
    free = free_bytes(Path(run.config.train["output_dir"]))
    if parameters is None:
        what = f"{size_text(free)} are free; the size of a checkpoint is not known before the model is loaded"
        yield Verdict("disk", "ok", what)
        return
    weights = parameters * BYTES[run.config.model.dtype]
    checkpoint = weights + parameters * OPTIMIZER
    kept = _checkpoints(run, plan)
    needed = weights + checkpoint * kept
    each = f" ({size_text(checkpoint)} per checkpoint, {kept} at a time)" if kept else ""
    what = f"the run needs up to {size_text(needed)}{each}; {size_text(free)} are free"
    if needed > free:
        fix = "free some space, choose another --output, or lower train.save_total_limit"
        yield Verdict("disk", "wrong", what, fix, "train.output_dir")
    else:
        yield Verdict("disk", "ok", what)


def _checkpoints(run: PreparedRun, plan: Plan) -> int:
    """How many checkpoints there are at a time, at most: one more than are kept, while the next is written."""
    names = ("save_strategy", "save_steps", "save_total_limit", "num_train_epochs")
    strategy, every, limit, epochs = (train_value(run.config, name) for name in names)
    if str(strategy) == "no":
        return 0
    saves = plan.steps
    if str(strategy) == "steps":  # the last step is saved too
        saves = math.ceil(plan.steps / (every if every >= 1 else math.ceil(every * max(plan.steps, 1))))
    elif str(strategy) == "epoch":
        saves = math.ceil(plan.steps / plan.steps_per_epoch) if plan.steps_per_epoch else math.ceil(epochs)
    return saves if limit is None else min(saves, limit + 1)


def _parameters(run: PreparedRun) -> int | None:
    """The number of parameters if all are trained; None with adapters, or if the number is not known."""
    if run.plugins.fillers("adapt_model") or is_adapter(run.config.model.name):
        return None
    shape = model_shape(run)
    return None if shape is None else shape.parameters
