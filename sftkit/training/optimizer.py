"""What the configured optimizer and schedule refuse, found on a model of one layer."""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Iterator
from typing import Any

from sftkit.errors import Problem

STEPS = 10  # of the schedule, after its warm-up
#: Messages of Python about the arguments of a call: one that it does not take, or those that are missing.
_ARGUMENT = re.compile(r"unexpected keyword argument ('.+?')|missing \d+ required [\w-]+ arguments?: (.+)")
_TRIALS = ("3", "0.3", "true", "std")  # values that show whether an option is read


def refused(key: str, error: Exception, fix: str = "") -> Problem:
    """A problem of a field of ``train``, from what a library raised."""
    message = " ".join(str(error).split())
    if isinstance(error, TypeError) and (match := _ARGUMENT.search(message)):
        what = f"there is no option {match[1]}" if match[1] else f"needs {match[2]}"
    elif isinstance(error, ValueError | ImportError) and message:
        what = message
    else:
        what = f"{type(error).__name__}: {message}"
    return Problem(what, f"train.{key}", fix or f"correct train.{key}", ("train", key))


def optimizer_problems(arguments: Any, on_cpu: bool) -> Iterator[Problem]:
    """Makes the optimizer and its schedule as the Trainer does.

    Args:
        arguments: `transformers.TrainingArguments`.
        on_cpu: whether the run uses the CPU: then the optimizer makes a step.
    """
    name = str(arguments.optim.value)
    if arguments.optim_target_modules is not None and not name.startswith(("galore", "apollo")):
        key, fix = "optim_target_modules", "remove it: only the optimizers galore_* and apollo_* project single modules"
        yield Problem(f"{name} has no target modules", f"train.{key}", fix, ("train", key))
        return
    if arguments.optim_target_modules is not None:  # the modules of the run's model are not known yet
        arguments = _changed(arguments, optim_target_modules="all-linear")
    if problem := _options_problem(arguments):
        yield problem
        return
    try:
        optimizer = _made(arguments)
        if on_cpu and "lomo" not in name:
            if callable(getattr(optimizer, "train", None)):
                optimizer.train()
            for group in optimizer.param_groups:
                for weight in group["params"]:
                    weight.grad = weight.detach().clone()
            optimizer.step()
    except Exception as error:  # whatever the optimizer's package raises, it is about these values
        key = _guilty(arguments)
        fix = "install what it needs, or choose another train.optim" if key == "optim" else "correct its values"
        yield refused(key, error, fix)
        return
    yield from _schedule_problems(arguments, optimizer)


def _changed(arguments: Any, **values: Any) -> Any:
    changed = copy.copy(arguments)
    for name, value in values.items():
        setattr(changed, name, value)
    return changed


def _options(arguments: Any) -> tuple[Any, dict[str, Any], Any]:
    import torch
    from transformers import Trainer

    with torch.random.fork_rng(devices=[]):
        model = torch.nn.ModuleDict({"linear": torch.nn.Linear(8, 8), "norm": torch.nn.LayerNorm(8)})
    return *Trainer.get_optimizer_cls_and_kwargs(arguments, model), model


def _made(arguments: Any) -> Any:
    """As `Trainer.create_optimizer` makes it."""
    cls, options, model = _options(arguments)
    if not isinstance(cls, type):
        return cls()(model, **options)
    weights: Any = [{"params": list(model.parameters()), "weight_decay": arguments.weight_decay}]
    for key in ("params", "model", "optimizer_dict"):
        weights = options.pop(key, weights)
    return cls(weights, **options)


def _guilty(arguments: Any) -> str:
    if arguments.optim_args:
        try:
            _made(_changed(arguments, optim_args=None))
        except Exception:  # the same, whatever it is
            return "optim"
        return "optim_args"
    return "optim"


def _options_problem(arguments: Any) -> Problem | None:
    """A problem with ``optim_args``: its form, or an option that the optimizer does not read."""
    text, key = arguments.optim_args, ("train", "optim_args")
    if not text:
        return None
    pairs = [part.split("=") for part in text.replace(" ", "").split(",")]
    if any(len(pair) != 2 or not all(pair) for pair in pairs):
        return Problem(f"{text!r} is not of the form name=value,name=value", "train.optim_args", "correct it", key)
    try:
        without = _settings(_changed(arguments, optim_args=None))
    except Exception:  # the optimizer itself cannot be made, which is reported
        return None
    for name, _ in pairs:
        if not any(_settings_of_trial(arguments, f"{name}={value}") != without for value in _TRIALS):
            what = f"{arguments.optim.value} has no option {name!r}"
            return Problem(what, "train.optim_args", "remove it, or choose another train.optim", key)
    return None


def _settings_of_trial(arguments: Any, text: str) -> str:
    try:
        return _settings(_changed(arguments, optim_args=text))
    except Exception as error:  # it is read, or it would not be refused
        return repr(error)


def _settings(arguments: Any) -> str:
    """The options of the optimizer, without its weights, as text."""
    _, options, _ = _options(arguments)
    groups = options.pop("params", [])
    plain = {name: value for name, value in options.items() if name not in ("model", "optimizer_dict")}
    return repr([plain, *({name: value for name, value in group.items() if name != "params"} for group in groups)])


def _schedule_problems(arguments: Any, optimizer: Any) -> Iterator[Problem]:
    """The schedule, and its rate at the start, after the warm-up, in the middle and at the end."""
    from transformers import get_scheduler

    warmup = arguments.get_warmup_steps(STEPS)
    total, kind = warmup + STEPS, arguments.lr_scheduler_type
    options = arguments.lr_scheduler_kwargs
    try:
        schedule = get_scheduler(kind, optimizer, warmup, total, scheduler_specific_kwargs=copy.deepcopy(options))
        rates = getattr(schedule, "lr_lambdas", None)
        if rates is None:  # it follows a metric
            schedule.step(1.0)
        for step in (0, warmup, warmup + STEPS // 2, total - 1, total):
            rate = rates[0](step) if rates else 0.0
            if not isinstance(rate, int | float) or not math.isfinite(rate) or rate < 0:
                raise ValueError(f"the schedule {kind.value} gives {rate} times the learning rate at {step} of {total}")
    except Exception as error:  # whatever the schedule raises, it is about these values
        yield refused("lr_scheduler_kwargs" if options else "lr_scheduler_type", error, _schedule_fix(kind))


def _schedule_fix(kind: Any) -> str:
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

    ours = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch", "kwargs")
    names = [name for name in inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[kind]).parameters if name not in ours]
    options = f"the options of {kind.value} in train.lr_scheduler_kwargs are: {', '.join(names)}"
    return options if names else f"{kind.value} takes no train.lr_scheduler_kwargs"
