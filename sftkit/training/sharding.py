"""Whether a model that was to be sharded by transformers and accelerate is."""

from __future__ import annotations

from typing import Any

from sftkit.errors import Problem, RunError


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
