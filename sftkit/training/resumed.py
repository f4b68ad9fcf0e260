"""What the configuration says takes precedence over what a checkpoint says, where the two differ."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sftkit.training.attributes import replaced

#: What an optimizer keeps per group and does not change, beside the learning rate: hyperparameters, and a name.
KEPT = (
    *("weight_decay", "betas", "eps", "momentum", "dampening", "nesterov", "alpha"),
    *("ns_steps", "adjust_lr_fn", "r", "weight_lr_power", "name"),
)


@contextmanager
def configured_hyperparameters(trainer: Any) -> Iterator[None]:
    """The Trainer loads the state of the optimizer and the schedule inside; their hyperparameters stay as configured.

    A checkpoint has the learning rate, weight decay, betas and epsilon with which it was saved, and the Trainer takes
    these. Nothing is different where they are equal.
    """
    load = trainer._load_optimizer_and_scheduler

    def loading(checkpoint: str | None) -> None:
        if checkpoint is None:
            load(checkpoint)
            return
        groups = [{**group, "params": None} for group in trainer.optimizer.param_groups]
        load(checkpoint)
        for group, configured in zip(trainer.optimizer.param_groups, groups, strict=True):
            group |= {name: configured[name] for name in KEPT if name in configured}
        _restore_rates(trainer, [group.get("initial_lr", group["lr"]) for group in groups])

    with replaced(trainer, "_load_optimizer_and_scheduler", loading):
        yield


def _restore_rates(trainer: Any, rates: list[Any]) -> None:
    """Continue with these base rates at the step of the checkpoint, in the configured schedule."""
    schedule = getattr(trainer.lr_scheduler, "scheduler", trainer.lr_scheduler)
    factors = getattr(schedule, "lr_lambdas", None)
    for index, (group, rate) in enumerate(zip(trainer.optimizer.param_groups, rates, strict=True)):
        before = group.get("initial_lr", rate)
        if factors is not None:
            group["lr"] = rate * factors[index](schedule.last_epoch)
        elif before != rate:
            group["lr"] *= rate / before
        group["initial_lr"] = rate
    if factors is not None:
        schedule.base_lrs = list(rates)
        schedule._last_lr = [group["lr"] for group in trainer.optimizer.param_groups]
