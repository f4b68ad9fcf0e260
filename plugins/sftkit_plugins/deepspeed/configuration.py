"""DeepSpeed's configuration: what the options give, what a file adds, and what contradicts the section ``train``."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sftkit.api import Problem, RunConfig, train_value, world_size

#: Where a value of DeepSpeed's configuration says what a training argument says.
SHARED = {
    ("train_micro_batch_size_per_gpu",): "per_device_train_batch_size",
    ("gradient_accumulation_steps",): "gradient_accumulation_steps",
    ("gradient_clipping",): "max_grad_norm",
    ("bf16", "enabled"): "bf16",
    ("fp16", "enabled"): "fp16",
}
#: Sections that would replace what the section ``train`` or sftkit does, and what to do instead.
REFUSED = {
    "optimizer": "remove it: train.optim, train.learning_rate, train.weight_decay and train.adam_* set the optimizer",
    "scheduler": "remove it: train.lr_scheduler_type and train.warmup_steps set the schedule",
    "amp": "remove it: train.bf16 and train.fp16 set the precision",
    "torch_autocast": "remove it: train.bf16 and train.fp16 set the precision",
    "tensor_parallel": "remove it: the plugin shards states, gradients and weights only",
    "elasticity": "remove it: it would change the batch size of the run",
    "autotuning": "remove it: a run trains with one configuration",
    "data_efficiency": "remove it: sftkit loads the data",
    "curriculum_learning": "remove it: sftkit loads the data",
    "datastates": "remove it: the state is saved by torch, so that it can be read without pickled objects",
}
STAGES = (1, 2, 3)
DEFAULT_STAGE = 2


class UnreadableError(ValueError):
    """The file of a configuration cannot be used."""


def read(given: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """The configuration that was given, as a file or a mapping; empty if none was.

    Raises:
        UnreadableError: if it is not a file with a JSON object.
    """
    if not isinstance(given, str):
        return copy.deepcopy(dict(given or {}))
    try:
        found = json.loads(Path(given).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UnreadableError(" ".join(str(error).split())) from error
    if not isinstance(found, dict):
        raise UnreadableError(f"{given} does not hold a JSON object")
    return found


def problems(given: Mapping[str, Any], config: RunConfig, where: str) -> Iterator[Problem]:
    """What a given configuration must not say, or says otherwise than the section ``train``.

    Args:
        given: from `read`.
        config: the run as resolved.
        where: the option that gave it.
    """
    zero = given.get("zero_optimization", {})
    if not isinstance(zero, Mapping) or zero.get("stage", DEFAULT_STAGE) not in STAGES:
        yield Problem("zero_optimization.stage is not 1, 2 or 3", where, "set it to 2 or 3")
        return
    for name, fix in REFUSED.items():
        if given.get(name):
            yield Problem(f"the DeepSpeed configuration has a section {name}", where, fix)
    for path, argument in SHARED.items():
        value = _at(given, path)
        if value in (None, "auto") or value == (wanted := train_value(config, argument)):
            continue
        what = f"{'.'.join(path)} is {value} in the DeepSpeed configuration, but train.{argument} is {wanted}"
        fix = f"set train.{argument}: {json.dumps(value)}, or {'.'.join(path)} to auto"
        yield Problem(what, where, fix)
    batch = given.get("train_batch_size", "auto")
    rows, batches = (int(train_value(config, name)) for name in list(SHARED.values())[:2])
    if batch not in ("auto", rows * batches * world_size()):
        what = f"train_batch_size is {batch}, but {rows} rows × {batches} batches × {world_size()} processes"
        yield Problem(f"{what} are {rows * batches * world_size()}", where, "set train_batch_size to auto")
    if (given.get("checkpoint") or {}).get("writer") or (given.get("checkpoint") or {}).get("load_universal"):
        yield Problem("checkpoint.writer and load_universal read pickled objects", where, "remove them")


def complete(given: Mapping[str, Any], stage: int | None, offload: str) -> dict[str, Any]:
    """The configuration of a run; transformers replaces each ``auto`` by the training argument of `SHARED`.

    Args:
        given: from `read`.
        stage: of ZeRO; with None, that of ``given``, or 2.
        offload: ``none``, ``optimizer`` or ``all``.
    """
    made = copy.deepcopy(dict(given))
    for path in SHARED:
        section = made
        for name in path[:-1]:
            section = section.setdefault(name, {})
        section.setdefault(path[-1], "auto")
    made.pop("train_batch_size", None)  # the product of the others
    zero = made.setdefault("zero_optimization", {})
    zero["stage"] = stage or zero.get("stage", DEFAULT_STAGE)
    zero["stage3_gather_16bit_weights_on_model_save"] = True  # a run ends with a whole model
    if offload != "none":
        zero.setdefault("offload_optimizer", {"device": "cpu", "pin_memory": True})
    if offload == "all":
        zero.setdefault("offload_param", {"device": "cpu", "pin_memory": True})
    # The optimizer is that of `train.optim`, also where DeepSpeed would choose one of its own for the CPU.
    made |= {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
    return made


def _at(values: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    found: Any = values
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found
