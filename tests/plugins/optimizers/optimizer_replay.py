"""The gradients of a run, and the same steps made by hand with other optimizers."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from sftkit import Pipeline
from sftkit.testing import tiny_conversations, tiny_model, tiny_tokenizer

TRAIN: dict[str, Any] = {
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "weight_decay": 0.1,
    "logging_steps": 1,
    "use_cpu": True,
    "report_to": "none",
}
QUICK = ["no:checks"]
ROWS = [{"text": row["messages"][0]["content"]} for row in tiny_conversations(16)]
HELD_OUT = [{"text": row["messages"][1]["content"]} for row in tiny_conversations(4)]


class Recorder(TrainerCallback):
    """Keeps the weights before the first step, and the gradients of each step as the optimizer gets them."""

    def __init__(self) -> None:
        self.before: dict[str, torch.Tensor] = {}
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
        self.before = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
        named = model.named_parameters()
        self.gradients.append({name: weight.grad.clone() for name, weight in named if weight.grad is not None})


def trained(directory: Path, plugins: list[Any], **train: Any) -> tuple[Any, Recorder]:
    """The model of a small run, and what was recorded."""
    recorder = Recorder()
    settings = {**TRAIN, "output_dir": str(directory), **train}
    pipeline = Pipeline(
        tiny_model(), ROWS, tokenizer=tiny_tokenizer(), plugins=[*plugins, *QUICK], train=settings, callbacks=[recorder]
    )
    return pipeline.run().model, recorder


def replayed(
    model: Any,
    recorder: Recorder,
    make: Callable[[Any], list[torch.optim.Optimizer]],
    factor: Callable[[int], float] = lambda step: (4 - step) / 4,
) -> tuple[Any, list[torch.optim.Optimizer]]:
    """A copy of the model, trained from the same weights with the recorded gradients, and its optimizers.

    Args:
        model: from `trained`.
        recorder: from `trained`.
        make: makes the optimizers of the copy.
        factor: of the learning rate at each step; by default the linear schedule.
    """
    model = copy.deepcopy(model)
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in named.items():
            weight.copy_(recorder.before[name])
    optimizers = make(model)
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, factor) for each in optimizers]
    for gradients in recorder.gradients:
        for name, gradient in gradients.items():
            named[name].grad = gradient.clone()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
    return model, optimizers


def same_weights(one: Any, other: Any) -> bool:
    """Whether two models have bitwise the same weights."""
    weights = dict(other.named_parameters())
    return all(torch.equal(weight, weights[name]) for name, weight in one.named_parameters())


def log_of(directory: Path) -> list[dict[str, Any]]:
    """The entries of a run's log that have a loss."""
    lines = (directory / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if "loss" in entry]


def require_exact_resume(directory: Path, plugins: list[Any], **train: Any) -> None:
    """A run of four steps that fails in the third, and is resumed after the second, is one that does not fail."""
    saving = {"save_strategy": "steps", "save_steps": 2, **train}
    whole, _ = trained(directory / "whole", plugins, **saving)
    settings = {**TRAIN, **saving, "output_dir": str(directory / "half")}
    known: dict[str, Any] = {"tokenizer": tiny_tokenizer(), "plugins": [*plugins, *QUICK], "train": settings}
    model = tiny_model()
    with pytest.raises(ValueError, match="enough"):
        Pipeline(model, ROWS, callbacks=[FailAfter(3)], **known).run()
    resumed = Pipeline(model, ROWS, resume=True, **known).run()
    assert resumed.status == "trained"
    assert same_weights(whole, resumed.model)
    losses = [{entry["step"]: entry["loss"] for entry in log_of(directory / name)} for name in ("whole", "half")]
    assert losses[0] == losses[1]


class FailAfter(TrainerCallback):
    """Fails after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise ValueError("that is enough")
