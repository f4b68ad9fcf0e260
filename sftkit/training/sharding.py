"""What a sharded model cannot do, and whether a model that was to be sharded is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sftkit.config.train_fields import train_value
from sftkit.errors import Problem, RunError
from sftkit.models.quantized import quantization_of

if TYPE_CHECKING:
    from sftkit.config import RunConfig

#: Optimizers of torch that update each element of a weight by itself, so that a process can update its shard.
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd", "rmsprop", "adagrad")


def sharding_problems(config: RunConfig) -> Iterator[Problem]:
    """What no run can do in which each process keeps a part of the weights.

    Args:
        config: the run as resolved.
    """
    if quantization_of(config.model.name) or "quantization_config" in config.model.options:
        fix = "use a model in full precision, or train without the plugin that shards it"
        yield Problem("quantized weights cannot be sharded", "model.name", fix, ("model", "name"))
    if train_value(config, "save_only_model") and train_value(config, "load_best_model_at_end"):
        what = "the best model is loaded from the shards of a checkpoint, which it would not have"
        yield Problem(what, "train.save_only_model", "remove it", ("train", "save_only_model"))


def dtensor_problems(config: RunConfig) -> Iterator[Problem]:
    """As `sharding_problems`, for a run whose parameters are DTensors.

    Args:
        config: the run as resolved.
    """
    yield from sharding_problems(config)
    optimizer = str(train_value(config, "optim") or OPTIMIZERS[0])
    if optimizer not in OPTIMIZERS:
        what, fix = f"{optimizer} cannot update the shards of a weight", f"choose one of {', '.join(OPTIMIZERS)}"
        yield Problem(what, "train.optim", fix, ("train", "optim"))


def require_sharded(trainer: Any) -> None:
    """Check the model of a trainer, once it is wrapped.

    Raises:
        RunError: if its arguments ask for FSDP, and every process has a whole copy, as accelerate does on a CPU.
    """
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    if not trainer.is_fsdp_enabled:
        return
    if any(isinstance(module, FSDPModule | FullyShardedDataParallel) for module in trainer.model_wrapped.modules()):
        return
    what = "FSDP was asked for, but accelerate has not sharded the model: it shards on GPUs only"
    raise RunError(Problem(what, "fsdp", "use a plugin that shards on every device, or drop the argument fsdp"))
