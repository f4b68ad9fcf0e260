"""Checks the number of steps, the warm-up and the learning rate of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from sftkit.api import Verdict, train_value

if TYPE_CHECKING:
    from sftkit.api import PreparedRun

BATCH, EPOCHS = 8, 3.0  # transformers' defaults
RATE_MOST = 0.01  # for AdamW: a hundred times what fine-tuning needs


@dataclass(frozen=True)
class Plan:
    """The size of a run.

    Attributes:
        rows_per_step: rows per optimizer step, over all processes; those that share a model have the same rows.
        steps_per_epoch: optimizer steps per epoch; None for a stream.
        steps: optimizer steps of the whole run.
        tokens_per_epoch: tokens per epoch; None for a stream.
        trained_tokens_per_step: average of trained tokens per step; None for a stream.
    """

    rows_per_step: int
    steps_per_epoch: int | None
    steps: int
    tokens_per_epoch: int | None
    trained_tokens_per_step: float | None


def plan_of(run: PreparedRun) -> Plan:
    """The plan of a run, computed by the rules of `transformers.Trainer`."""
    train = run.config.train
    world = run.engine.replicas
    batch = int(train.get("per_device_train_batch_size", BATCH))
    accumulation = int(train.get("gradient_accumulation_steps", 1))
    max_steps = int(train.get("max_steps", -1))
    described = run.data.described.get("train")
    if described is None:
        return Plan(batch * accumulation * world, None, max_steps, None, None)
    batches = described["rows"] / (batch * world)
    batches = math.floor(batches) if train.get("dataloader_drop_last") else math.ceil(batches)
    per_epoch = max(math.ceil(batches / accumulation), 1) if batches else 0
    steps = max_steps if max_steps >= 0 else math.ceil(float(train.get("num_train_epochs", EPOCHS)) * per_epoch)
    trained = described["trained tokens"] / max(per_epoch, 1)
    return Plan(batch * accumulation * world, per_epoch, steps, described["tokens"], round(trained, 1))


def plan_verdicts(run: PreparedRun, plan: Plan) -> Iterator[Verdict]:
    """Verdicts on the number of steps, the warm-up and the learning rate."""
    train = run.config.train
    what = f"{_steps(plan.steps)} of {plan.rows_per_step:,} rows"
    if plan.steps_per_epoch is not None:
        what += f"; an epoch has {_steps(plan.steps_per_epoch)} and {plan.tokens_per_epoch:,} tokens"
    if 0 in (train.get("max_steps"), train.get("num_train_epochs")) and plan.steps == 0:
        yield Verdict("steps", "ok", "the run has no steps: it only evaluates the model", details=asdict(plan))
    elif plan.steps < 1:
        fix = "set train.num_train_epochs or train.max_steps, or lower the batch size"
        yield Verdict("steps", "wrong", f"the run has no steps: {what}", fix, "train", asdict(plan))
    else:
        yield Verdict("steps", "ok", what, details=asdict(plan))
    warmup = float(train.get("warmup_steps", 0))
    if warmup >= 1 and warmup >= plan.steps > 0:
        what = f"the warm-up takes {warmup:,.0f} of {_steps(plan.steps)}, so the full learning rate is never reached"
        yield Verdict("warm-up", "warn", what, "lower train.warmup_steps", "train.warmup_steps")
    yield from _evaluations(run, plan)
    rate = float(train.get("learning_rate", 5e-5))
    if rate > RATE_MOST and str(train.get("optim", "adamw")).startswith("adamw"):
        what = f"train.learning_rate is {rate:g}"
        yield Verdict("learning rate", "warn", what, "set it between 1e-6 and 1e-3", "train.learning_rate")


def _steps(number: int) -> str:
    return f"{number:,} step{'' if number == 1 else 's'}"


def _evaluations(run: PreparedRun, plan: Plan) -> Iterator[Verdict]:
    """Verdicts on evaluations that are due after the last step; the best of several models is never known then."""
    strategy = train_value(run.config, "eval_strategy")
    if strategy == "no" or plan.steps < 1:
        return
    delay, every = float(train_value(run.config, "eval_delay") or 0), 0.0
    if strategy == "steps":
        end: float = plan.steps
        every = float(train_value(run.config, "eval_steps") or train_value(run.config, "logging_steps"))
    else:
        end = plan.steps / plan.steps_per_epoch if plan.steps_per_epoch else math.inf
    if delay > end:
        best = train_value(run.config, "load_best_model_at_end") or train_value(run.config, "save_strategy") == "best"
        what = f"the run ends before the first evaluation is due: train.eval_delay is {delay:g}"
        what += f", and it has {_steps(plan.steps)}" + (", so no model is the best" if best else "")
        yield Verdict("evaluation", "wrong" if best else "warn", what, "lower train.eval_delay", "train.eval_delay")
    elif every > end:
        key = "train.eval_steps" if run.config.evaluate.every is None else "evaluate.every"
        what = f"the run evaluates only after its last step: {key} is {every:,.0f} of {_steps(plan.steps)}"
        yield Verdict("evaluation", "warn", what, f"lower {key}", key)
    elif (patience := run.config.evaluate.patience) is not None:
        times = math.ceil(1 / every if 0 < every < 1 else end / (every or 1))
        if patience >= times:
            what = f"the run has {times} evaluations, so evaluate.patience, which is {patience}, never stops it"
            fix = "lower evaluate.patience or evaluate.every"
            yield Verdict("early stopping", "warn", what, fix, "evaluate.patience")
