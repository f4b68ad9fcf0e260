"""The optimizer that a plugin makes: what it must be, and its groups of weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftkit.errors import ConfigError, Problem, RunError

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from sftkit.config import RunConfig
    from sftkit.plugin.selected import PluginSet
    from sftkit.training.engine import Engine

#: Optimizers of torch that update each element of a weight by itself, so that a process can update its shard.
BY_ELEMENT = ("AdamW", "SGD", "RMSprop", "Adagrad")


@dataclass(frozen=True)
class WeightGroup:
    """A group of an optimizer.

    Attributes:
        name: the entry ``name`` of the group, else its number.
        weights: the number of single weights in it.
        learning_rate: its learning rate, before the schedule.
        weight_decay: its weight decay.
    """

    name: str
    weights: int
    learning_rate: float
    weight_decay: float


@dataclass(frozen=True)
class OptimizerMaker:
    """Makes the optimizer of a run if a plugin fills ``make_optimizer``.

    Attributes:
        plugins: the selected plugins.
        config: the run as resolved.
        engine: how the processes share the model; DDP by default.
    """

    plugins: PluginSet
    config: RunConfig
    engine: Engine | None = None

    @property
    def plugin(self) -> str:
        """The name of the plugin that is asked first; empty if none fills the slot."""
        return self.plugins.first_filler("make_optimizer")

    def __call__(self, model: Any) -> Optimizer | None:
        """The optimizer for a model; None if it is that of ``train.optim``.

        Args:
            model: the model to train, on its device or on the meta device.

        Raises:
            RunError: if a plugin returns anything but an optimizer in which each trained weight is once, and no other.
            ConfigError: from the plugin; or if it cannot update the shards of the engine.
        """
        made = self.plugins.hook.make_optimizer(model=model, config=self.config)
        if made is None:
            return None
        where = f"plugin {self.plugin or '?'}, hook make_optimizer"
        if problem := next(_problems(made, model), None):
            raise RunError(Problem(problem[0], where, problem[1]))
        if self.engine is not None and self.engine.sharded and not _updates_by_element(made):
            what = f"{type(made).__name__} may need whole weights, and the engine {self.engine.name} shards them"
            fix = f"train without the plugin that shards the model, or use one of torch's {', '.join(BY_ELEMENT)}"
            raise ConfigError(Problem(what, where, fix))
        return made


def _updates_by_element(made: Any) -> bool:
    import torch

    return isinstance(made, tuple(getattr(torch.optim, name) for name in BY_ELEMENT))


def _problems(made: Any, model: Any) -> Iterator[tuple[str, str]]:
    """What is wrong with the result of the hook, and the fix."""
    import torch

    if not isinstance(made, torch.optim.Optimizer):
        yield f"it returned {type(made).__name__}", "return a torch.optim.Optimizer, or None"
        return
    names = {id(weight): name for name, weight in model.named_parameters()}
    trained = {id(weight) for weight in model.parameters() if weight.requires_grad}
    seen: set[int] = set()
    for weight in (weight for group in made.param_groups for weight in group["params"]):
        if id(weight) not in names:
            what = f"a weight of shape {tuple(weight.shape)} is in a group, but not in the model"
            yield what, "take the weights from model.named_parameters()"
        elif id(weight) not in trained:
            what = f"the weight {names[id(weight)]} is in a group, but is not trained"
            yield what, "leave out the weights whose requires_grad is False"
        elif id(weight) in seen:  # torch refuses this itself, unless a subclass adds its groups otherwise
            yield f"the weight {names[id(weight)]} is in two groups", "put each weight into one group"
        seen.add(id(weight))
    if missing := [name for key, name in names.items() if key in trained - seen]:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        what = f"{missing[0]}{more} would not be trained, since no group has it"
        yield what, "put each weight whose requires_grad is True into one group"


def weight_groups(optimizer: Any) -> list[WeightGroup]:
    """The groups of an optimizer that have weights."""
    return [
        WeightGroup(
            str(group.get("name", number)),
            sum(weight.numel() for weight in group["params"]),
            float(group.get("initial_lr", group["lr"])),
            float(group.get("weight_decay", 0.0)),
        )
        for number, group in enumerate(optimizer.param_groups)
        if group["params"]
    ]


def learning_rates(optimizer: Any) -> dict[str, float]:
    """The present rate of each group as ``learning_rate_NAME``; empty if all groups have the same rate."""
    groups = [(number, group) for number, group in enumerate(optimizer.param_groups) if group["params"]]
    if len({float(group.get("initial_lr", group["lr"])) for _, group in groups}) < 2:
        return {}
    names = {number: str(group.get("name", number)) for number, group in groups}
    # Trackers refuse most other characters.
    return {"learning_rate_" + re.sub(r"[^\w.]+", "_", names[number]): float(group["lr"]) for number, group in groups}


def require_same_groups(optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
    """Check that a saved state is of such an optimizer; torch calls it before it loads one.

    Raises:
        RunError: if the groups have other hyperparameters, or other numbers of weights.
    """
    groups, others = optimizer.param_groups, saved["param_groups"]
    known = {"initial_lr", "name", "param_names"}
    kinds = [[{*group} - known for group in each] for each in (groups, others)]
    sizes = [[len(group["params"]) for group in each] for each in (groups, others)]
    if kinds[0] == kinds[1] and sizes[0] == sizes[1]:
        return
    what = (
        f"the state in the checkpoint is of another optimizer, or of other groups: {sizes[1]} weights, not {sizes[0]}"
    )
    fix = "set back what has changed, or start a new run from the weights of a checkpoint, with model.name"
    raise RunError(Problem(what, "optimizer", fix))
