"""How many steps a run takes, and on how many tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sftkit.api import world_size
from sftkit_commands.check.verdict import Status, Verdict

if TYPE_CHECKING:
    from sftkit.api import PreparedRun

BATCH, EPOCHS = 8, 3.0  # transformers' defaults
RATE_MOST = 0.01  # of AdamW: a hundred times what fine-tuning takes


@dataclass(frozen=True)
class Plan:
    """What a run takes.

    Attributes:
        rows_per_step: rows of an optimizer step, over all processes.
        steps_per_epoch: None for a stream.
        steps: of the whole run.
        tokens_per_epoch: None for a stream.
        trained_tokens_per_step: on average; None for a stream.
    """

    rows_per_step: int
    steps_per_epoch: int | None
    steps: int
    tokens_per_epoch: int | None
    trained_tokens_per_step: float | None


def plan_of(prepared: PreparedRun) -> Plan:
    """The plan of a run, by the rules of `transformers.Trainer`."""
    train = prepared.config.train
    world = world_size()
    batch = int(train.get("per_device_train_batch_size", BATCH))
    accumulation = int(train.get("gradient_accumulation_steps", 1))
    max_steps = int(train.get("max_steps", -1))
    told = prepared.data.described.get("train")
    if told is None:
        return Plan(batch * accumulation * world, None, max_steps, None, None)
    batches = told["rows"] / (batch * world)
    batches = math.floor(batches) if train.get("dataloader_drop_last") else math.ceil(batches)
    per_epoch = max(math.ceil(batches / accumulation), 1) if batches else 0
    steps = max_steps if max_steps > 0 else math.ceil(float(train.get("num_train_epochs", EPOCHS)) * per_epoch)
    trained = told["trained tokens"] / max(per_epoch, 1)
    return Plan(batch * accumulation * world, per_epoch, steps, told["tokens"], round(trained, 1))


def plan_verdicts(prepared: PreparedRun, plan: Plan) -> Iterator[Verdict]:
    """Verdicts on the plan."""
    train = prepared.config.train
    told = f"{plan.steps:,} steps of {plan.rows_per_step:,} rows"
    if plan.steps_per_epoch is not None:
        told += f"; an epoch has {plan.steps_per_epoch:,} steps and {plan.tokens_per_epoch:,} tokens"
    if plan.steps < 1:
        fix = "set train.num_train_epochs or train.max_steps, or lower the batch size"
        yield Verdict("steps", "wrong", f"the run takes no step: {told}", fix)
    else:
        yield Verdict("steps", "ok", told)
    warmup = float(train.get("warmup_steps", 0))
    if warmup >= 1 and warmup >= plan.steps > 0:
        what = f"{warmup:,.0f} steps of warm-up, and the run has {plan.steps:,}: the full rate is never reached"
        yield Verdict("warm-up", "wrong", what, "lower train.warmup_steps")
    rate = float(train.get("learning_rate", 5e-5))
    if rate <= 0 or (rate > RATE_MOST and str(train.get("optim", "adamw")).startswith("adamw")):
        status: Status = "wrong" if rate <= 0 else "warn"
        yield Verdict("learning rate", status, f"train.learning_rate is {rate:g}", "fine-tuning takes 1e-6 to 1e-3")
