"""The engine of DeepSpeed, which `transformers.Trainer` drives through accelerate."""

from __future__ import annotations

import functools
import io
import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from pickle import UnpicklingError
from typing import Any

from sftkit.api import (
    Engine,
    Problem,
    RunConfig,
    RunError,
    has_adapter,
    is_main_process,
    table_weights,
    world_size,
)

logger = logging.getLogger("sftkit")

#: Variables that are restored when the run ends: accelerate and torch read them.
VARIABLES = (
    *("ACCELERATE_USE_DEEPSPEED", "DS_ACCELERATOR"),
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
)


class DeepSpeedEngine(Engine):
    """ZeRO by DeepSpeed.

    Its configuration exists before the model, so with stage 3 each process keeps only its part of each weight as soon
    as that is read. Checkpoints are read with ``weights_only``.

    Args:
        values: DeepSpeed's configuration.
        config: the run as resolved.
    """

    name = "deepspeed"
    sharded = True
    reshards = False
    restores = True

    def __init__(self, values: Mapping[str, Any], config: RunConfig) -> None:
        self.values, self._config = values, config
        self._before = {name: os.environ.get(name) for name in VARIABLES}
        self._began_group = False

    @property
    def stage(self) -> int:
        """The stage of ZeRO."""
        return int(self.values["zero_optimization"]["stage"])

    def arguments(self) -> Mapping[str, Any]:
        """The training argument ``deepspeed``, for the device of the run.

        Raises:
            RunError: if DeepSpeed already works on another kind of device in this process.
        """
        import torch

        on_cpu = bool(self._config.train.get("use_cpu")) or not torch.accelerator.is_available()
        if on_cpu:
            os.environ["DS_ACCELERATOR"] = "cpu"
        self._join_group(on_cpu)
        from deepspeed.accelerator import get_accelerator

        device = get_accelerator().device_name()
        if on_cpu != (device == "cpu"):
            what = (
                f"DeepSpeed works on {device} in this process, and the run needs {'the CPU' if on_cpu else 'the GPU'}"
            )
            raise RunError(Problem(what, "plugin deepspeed", "start a new process, without DS_ACCELERATOR"))
        return {"deepspeed": self.values}

    def _join_group(self, on_cpu: bool) -> None:
        """Form a group of one if no launcher has started this process, since DeepSpeed needs one."""
        import torch.distributed as dist
        from torch.distributed import HashStore  # type: ignore[attr-defined]

        if dist.is_initialized() or "RANK" in os.environ:
            return
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update(alone)
        dist.init_process_group("gloo" if on_cpu else None, store=HashStore(), rank=0, world_size=1)
        self._began_group = True

    @contextmanager
    def loading(self) -> Iterator[None]:
        """As in the base class. DeepSpeed joins the group of processes before: each prints what it has built for it."""
        import deepspeed
        import torch.distributed as dist
        from deepspeed.accelerator import get_accelerator

        if dist.is_initialized():
            with redirect_stdout(io.StringIO()):
                deepspeed.init_distributed(get_accelerator().communication_backend_name())
        with super().loading():
            yield

    def place(self, model: Any, arguments: Any) -> Any:
        """The model on its device; with stage 3, what was not partitioned when it was loaded follows later."""
        if is_main_process():
            logger.info(
                "DeepSpeed: ZeRO stage %d in %d process%s on the %s, with the optimizer %s and the schedule %s",
                *(self.stage, world_size(), "es" if world_size() > 1 else "", arguments.device.type),
                *(arguments.optim.value, arguments.lr_scheduler_type.value),
            )
        return model if self.stage == 3 else model.to(arguments.device)

    def gather_tables(self, model: Any) -> None:
        """With stage 3, the embeddings are whole until the rest of the model is prepared."""
        from sftkit_plugins.deepspeed.partitioned import unpartition_tables

        if self.stage == 3:
            unpartition_tables(model)

    def callable(self, model: Any) -> AbstractContextManager[Any]:
        """The model can be called inside: with stage 3, each module's weights are gathered while it computes."""
        if self.stage != 3:
            return nullcontext()
        from sftkit_plugins.deepspeed.partitioned import gathered_by_module

        return gathered_by_module(model)

    def weights(self, trainer: Any) -> dict[str, Any]:
        """The whole weights, gathered one by one into the memory of the main process's CPU."""
        import deepspeed

        model = trainer.accelerator.unwrap_model(trainer.model)
        found: dict[str, Any] = {}
        seen: dict[int, Any] = {}
        for name, tensor in saved_tensors(model):
            with deepspeed.zero.GatheredParameters([tensor]):
                if is_main_process():
                    if id(tensor) not in seen:  # tied weights stay tied
                        seen[id(tensor)] = tensor.detach().to("cpu", copy=True)
                    found[name] = seen[id(tensor)]
        return found

    def save_state(self, trainer: Any, directory: str) -> bool:
        """Write the parts of this process, and in the main process the names of the parts."""
        trainer.deepspeed.save_checkpoint(directory, exclude_frozen_parameters=has_adapter(trainer.model))
        return True

    def load_state(self, trainer: Any, directory: str) -> bool:
        """Read what `save_state` has written.

        Raises:
            RunError: if a file contains pickled objects other than DeepSpeed's own plain ones; nothing of them was
                executed.
        """
        engine = trainer.deepspeed
        with plain_objects_only(directory):
            path, _ = engine.load_checkpoint(directory, load_module_strict=not has_adapter(trainer.model))
        if path is None:
            raise RunError(Problem("the checkpoint has no DeepSpeed state", directory, "resume from another one"))
        engine.optimizer.clip_grad = trainer.args.max_grad_norm  # the configured one, as of the optimizer
        return True

    def close(self) -> None:
        """Restore the variables, and forget the configuration, by which the next model would be partitioned."""
        import torch.distributed as dist
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()
        if self._began_group and dist.is_initialized():
            from deepspeed import comm

            # DeepSpeed keeps the group for the next run of the process, unless it ends the group itself.
            (comm if comm.is_initialized() else dist).destroy_process_group()
        for name, value in self._before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def saved_tensors(model: Any) -> Iterator[tuple[str, Any]]:
    """The weights and buffers to save, by name; of a model with an adapter, without the frozen weights of its base.

    Its embeddings are among them, since peft saves them if they have grown.
    """
    from torch.nn import Parameter

    tables = {id(weight) for weight in table_weights(model)}
    for name, tensor in model.state_dict(keep_vars=True).items():
        frozen = isinstance(tensor, Parameter) and not tensor.requires_grad and id(tensor) not in tables
        if not (has_adapter(model) and frozen):
            yield name, tensor


@contextmanager
def plain_objects_only(directory: str) -> Iterator[None]:
    """DeepSpeed reads a checkpoint inside with ``weights_only``, which it does not do by itself.

    Besides tensors and plain values, its states have objects of the classes of `own_classes`, which only hold values.

    Raises:
        RunError: if a file contains anything else.
    """
    import torch

    variable = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(variable)
    os.environ[variable] = "1"
    try:
        with torch.serialization.safe_globals(own_classes()):
            yield
    except UnpicklingError as error:
        what = "the state contains pickled objects other than tensors and plain values, and is not loaded"
        fix = "do not use this checkpoint; delete it, and resume from an older one"
        raise RunError(Problem(what, directory, fix)) from error
    finally:
        os.environ.pop(variable)
        if before is not None:
            os.environ[variable] = before


@functools.cache
def own_classes() -> list[Any]:
    """The classes in DeepSpeed's states: they hold the scale of the loss, the stage, and places."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]
