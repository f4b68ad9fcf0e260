"""Schedule-free AdamW: an average of the weights in place of a decaying learning rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from sftkit.api import Field, Plugin, Problem, dataclass, decayed_names, hookimpl, train_value

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from sftkit.api import RunConfig

CONSTANT, WITH_WARMUP = "constant", "constant_with_warmup"


@dataclass(frozen=True, kw_only=True)
class ScheduleFree(Plugin):
    """Trains with schedule-free AdamW, and evaluates and saves its average of the weights.

    Source: Defazio et al., 2024, The Road Less Scheduled (arXiv 2405.15682).
    """

    requires: ClassVar[tuple[str, ...]] = ("schedulefree>=1.4",)
    replaces: ClassVar[Mapping[str, str]] = {"optim": "", "optim_args": "", "optim_target_modules": ""}
    conflicts: ClassVar[tuple[str, ...]] = ("deepspeed", "fsdp", "tensor_parallel")

    r: Annotated[
        float, Field(ge=0, allow_inf_nan=False, description="later steps count more: step t by t to the power r")
    ] = 0.0
    weight_lr_power: Annotated[
        float,
        Field(ge=0, allow_inf_nan=False, description="steps count by their largest rate so far to this power"),
    ] = 2.0

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """Schedules that decay, a warm-up that the schedule ignores, and steps that cannot be skipped."""
        schedule, warmup = (train_value(config, name) for name in ("lr_scheduler_type", "warmup_steps"))
        key = ("train", "lr_scheduler_type")
        if schedule not in (CONSTANT, WITH_WARMUP):
            what = f"schedule-free training needs a constant learning rate, and the schedule is {schedule}"
            fix = f"set train.lr_scheduler_type: {WITH_WARMUP if warmup else CONSTANT}"
            yield Problem(what, "train.lr_scheduler_type", fix, key)
        elif schedule == CONSTANT and warmup:
            what = f"the schedule constant ignores train.warmup_steps, which is {warmup:g}"
            fix = f"set train.lr_scheduler_type: {WITH_WARMUP}, or remove train.warmup_steps"
            yield Problem(what, "train.lr_scheduler_type", fix, key)
        if not float(train_value(config, "adam_beta1")) > 0:
            what = "the average is computed from beta1, which must be above 0"
            yield Problem(what, "train.adam_beta1", "use 0.9", ("train", "adam_beta1"))
        if config.run.on_nan == "skip":
            what = "schedule-free AdamW cannot skip a step that is not finite"
            yield Problem(what, "run.on_nan", "set run.on_nan: stop", ("run", "on_nan"))

    @hookimpl
    def make_optimizer(self, model: Any, config: RunConfig) -> Optimizer:
        """The optimizer of the package, in which weights are decayed as in the Trainer."""
        from schedulefree import AdamWScheduleFree

        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        decayed, decay = decayed_names(model), float(train_value(config, "weight_decay"))
        chosen = [weight for name, weight in trained.items() if name in decayed]
        others = [weight for name, weight in trained.items() if name not in decayed]
        groups: list[dict[str, Any]] = [
            {"params": chosen, "weight_decay": decay, "name": "decayed"},
            {"params": others, "weight_decay": 0.0, "name": "others"},
        ]
        beta1, beta2, eps, rate = (
            float(train_value(config, name)) for name in ("adam_beta1", "adam_beta2", "adam_epsilon", "learning_rate")
        )
        return AdamWScheduleFree(
            [group for group in groups if group["params"]],
            lr=rate,
            betas=(beta1, beta2),
            eps=eps,
            r=self.r,
            weight_lr_power=self.weight_lr_power,
        )
