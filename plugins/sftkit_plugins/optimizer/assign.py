"""Which group each trained weight belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sftkit.api import ConfigError, Problem, base_model, decayed_names, layer_stacks
from sftkit_plugins.optimizer import WHERE, Setting

#: A part of the name of each matrix B of LoRA.
LORA_B = ("lora_B", "lora_embedding_B")


@dataclass(frozen=True)
class Weight:
    """A trained weight, with what its group has.

    Attributes:
        group: the name of the group.
        rate: its learning rate.
        decay: its weight decay.
    """

    group: str
    rate: float
    decay: float


def groups_of(
    model: Any,
    rate: float,
    decay: float,
    patterns: Mapping[str, Mapping[Setting, float]],
    layer_decay: float | None,
    lora_plus: float | None,
) -> list[dict[str, Any]]:
    """The groups as `torch.optim.Optimizer` takes them; without any option, those of the Trainer.

    Args:
        model: the model to train.
        rate: ``train.learning_rate``.
        decay: ``train.weight_decay``.
        patterns: option ``groups``.
        layer_decay: the option.
        lora_plus: the option.

    Raises:
        ConfigError: if an option changes no trained weight.
    """
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    found = {name: next((each for each in patterns if re.search(each, name)), None) for name in trained}
    if problems := list(_unmatched(patterns, list(trained), {*found.values()}, model)):
        raise ConfigError(problems)
    depths = _depths(model, list(trained)) if layer_decay is not None else {}
    if lora_plus is not None and not any(_is_lora_b(name) for name in trained):
        fix = "train LoRA, as with -p peft, or remove it"
        raise ConfigError(Problem("no matrix B of LoRA is trained", f"{WHERE}, option lora_plus", fix))
    decayed = decayed_names(model)
    groups: dict[Weight, list[Any]] = {}
    for name in sorted(
        trained, key=lambda name: name not in decayed
    ):  # first those that are decayed, as in the Trainer
        pattern, names, scaled = found[name], [], rate
        settings: Mapping[Setting, float] = patterns[pattern] if pattern is not None else {}
        if layer_decay is not None and "learning_rate" not in settings:
            place, depth = depths[name]
            names, scaled = [place], scaled * layer_decay**depth
        if lora_plus is not None and _is_lora_b(name) and "learning_rate" not in settings:
            names, scaled = [*names, "lora_B"], scaled * lora_plus
        scaled = settings.get("learning_rate", scaled * settings.get("factor", 1.0))
        own = settings.get("weight_decay", decay if name in decayed else 0.0)
        group = Weight(", ".join([*names, *([pattern] if pattern is not None else [])]) or "others", scaled, own)
        groups.setdefault(group, []).append(trained[name])
    return [
        {"params": weights, "lr": group.rate, "weight_decay": group.decay, "name": group.group}
        for group, weights in groups.items()
    ]


def _is_lora_b(name: str) -> bool:
    return not {*name.split(".")}.isdisjoint(LORA_B)


def _unmatched(patterns: Mapping[str, Any], trained: list[str], used: set[str | None], model: Any) -> Iterator[Problem]:
    for pattern in patterns:
        if pattern in used:
            continue
        key = ("plugins", "optimizer", "groups", pattern)
        if any(re.search(pattern, name) for name in trained):
            what, fix = "a pattern before it matches each weight that it matches", "put it first, or remove it"
        elif any(re.search(pattern, name) for name, _ in model.named_parameters()):
            what, fix = "it matches only weights that are not trained", "correct it, or remove it"
        else:
            what, fix = "it matches no weight", f"a trained weight is named like {trained[len(trained) // 2]}"
        yield Problem(f"{pattern!r}: {what}", f"{WHERE}, option groups", fix, key)


def _depths(model: Any, names: list[str]) -> dict[str, tuple[str, int]]:
    """For each weight, its place for people, and the number of layers above it: the head has none, embeddings all.

    Raises:
        ConfigError: if there is not exactly one stack of layers with trained weights.
    """
    from torch import nn

    stacks = {
        stack: len(layers) for stack, layers in layer_stacks(model).items() if any(_in(stack, name) for name in names)
    }
    where, fix = f"{WHERE}, option layer_decay", "give its parts a factor in the option groups"
    if len(stacks) != 1:
        what = f"the model has {len(stacks)} stacks of layers that are trained: {', '.join(stacks)}"
        raise ConfigError(Problem(what if stacks else "no layers were found in the model", where, fix))
    ((stack, layers),) = stacks.items()
    tables = [path for path, module in model.named_modules() if isinstance(module, nn.Embedding)]
    tables += [path for path, module in model.named_modules() if module is base_model(model).get_input_embeddings()]
    depths = {}
    for name in names:
        if _in(stack, name):
            number = int(name.removeprefix(f"{stack}.").split(".")[0])
            depths[name] = (f"layer {number}", layers - number)
        elif any(_in(table, name) for table in tables):
            depths[name] = ("embeddings", layers + 1)
        else:
            depths[name] = ("head", 0)
    return depths


def _in(module: str, name: str) -> bool:
    return name.startswith(f"{module}.")
