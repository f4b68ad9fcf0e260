"""FSDP2: each process keeps a shard of every weight, its gradient and its optimizer state."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from sftkit.api import Problem, RunError, ShardedEngine, base_model, parts_of, world_size

if TYPE_CHECKING:
    from torch import nn

    from sftkit_plugins.fsdp import FSDP

logger = logging.getLogger("sftkit")


class FSDPEngine(ShardedEngine):
    """Shards a model with `torch.distributed.fsdp.fully_shard`, block by block.

    Source: Zhao et al., 2023, PyTorch FSDP (arXiv 2304.11277); https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html

    Args:
        options: of the plugin.
    """

    name: ClassVar[str] = "fsdp"

    def __init__(self, options: FSDP) -> None:
        super().__init__()
        self._options = options

    def arguments(self) -> Mapping[str, Any]:
        """With offloaded weights, the processes reduce tensors of the CPU as well as of the GPUs."""
        return {"ddp_backend": "cpu:gloo,cuda:nccl"} if self._options.offload else {}

    def place(self, model: Any, arguments: Any) -> Any:
        """The model, sharded; see `Engine.place`."""
        import torch
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import register_fsdp_forward_method
        from torch.distributed.tensor import DTensor

        mesh = init_device_mesh(arguments.device.type, (world_size(),))
        whole, images = parts_to_gather(model)
        with self.filling(model, torch.device("cpu") if self._options.offload else arguments.device):
            self._shard(model, mesh, whole)
        if not all(isinstance(parameter, DTensor) for parameter in model.parameters()):
            fix = "report it, with the class of the model"
            raise RunError(Problem(f"{type(model).__name__} was not sharded", "plugin fsdp", fix))
        resharding = _Resharding(self._options.reshard_after_forward)
        model.register_forward_pre_hook(resharding)
        if hasattr(model, "generate"):
            register_fsdp_forward_method(model, "generate")
            model.generate = functools.partial(resharding.generate, model, model.generate)
        if images:  # processes with and without images in their batches reduce the same gradients in the same order
            base_model(model).enable_input_require_grads()
            model.register_forward_hook(functools.partial(_with_gradients, images))
        self.postpones_reduction(model)
        return model

    def _shard(self, model: nn.Module, mesh: Any, whole: set[nn.Module]) -> None:
        import torch
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard

        options = self._options
        dtype = getattr(torch, options.dtype) if options.dtype else None
        shared = {
            "mesh": mesh,
            "mp_policy": MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=getattr(torch, options.reduce_dtype)),
            "offload_policy": CPUOffloadPolicy() if options.offload else OffloadPolicy(),
        }
        chosen = [module for module in blocks(model) if module not in whole]
        require_uniform(model, chosen)
        for module in reversed(chosen):  # inner ones first
            fully_shard(module, reshard_after_forward=options.reshard_after_forward, **shared)
        fully_shard(model, **shared)


class _Resharding:
    """A forward pre-hook of the sharded model: without gradients, every weight is freed after the forward.

    Otherwise the weights outside of blocks would stay gathered until a backward, which does not come, and whatever
    looks at the parameters then, such as a new optimizer, would not find the shards.

    Args:
        training: whether blocks free their weights after a forward with gradients.
    """

    def __init__(self, training: bool) -> None:
        self._training = training
        self._gradients: bool | None = None

    def __call__(self, model: Any, *_: Any) -> None:
        """Sets what happens after this forward."""
        import torch

        if self._gradients == torch.is_grad_enabled():
            return
        self._gradients = torch.is_grad_enabled()
        model.set_reshard_after_forward(self._training or not self._gradients)
        if self._gradients:
            model.set_reshard_after_forward(False, recurse=False)  # they are needed again when the backward begins

    def generate(self, model: Any, generate: Any, *arguments: Any, **options: Any) -> Any:
        """What ``generate`` of the model returns."""
        import torch

        with torch.no_grad():
            made = generate(*arguments, **options)
            model.reshard()
            return made


def blocks(model: nn.Module) -> list[nn.Module]:
    """The modules whose weights are gathered together: those that transformers keeps on one device, else all layers
    that can be checkpointed.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    names = {str(name) for name in getattr(base_model(model), "_no_split_modules", None) or ()}
    modules = [module for module in model.modules() if module is not model]
    found = [module for module in modules if type(module).__name__ in names]
    found = found or [module for module in modules if isinstance(module, GradientCheckpointingLayer)]
    if not found:
        logger.warning("fsdp: %s names no blocks, so its weights are gathered all at once", type(model).__name__)
    return found


def parts_to_gather(model: nn.Module) -> tuple[set[nn.Module], list[str]]:
    """Of an image-text model: modules that are not sharded as blocks, and names of weights that always get a gradient.

    A process whose batch has no image does not call the vision tower, and others would wait for it.
    """
    base: Any = base_model(model)
    if not hasattr(base.config, "vision_config"):
        return set(), []
    parts = {name for name, part in parts_of(base).items() if part != "language"}
    modules = {module for name, module in base.named_modules() if name in parts or _holds(name, parts)}
    language = {weight for name, weight in base.named_parameters() if name.rpartition(".")[0] not in parts}
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    return modules, [name for name, weight in trained if weight not in language]


def _holds(name: str, parts: set[str]) -> bool:
    """Whether only those parts are inside of a module."""
    return bool(name) and any(part.startswith(f"{name}.") for part in parts)


def require_uniform(model: nn.Module, chosen: list[nn.Module]) -> None:
    """Raises:
    RunError: if weights that are gathered together are trained in several types.
    """
    taken: set[nn.Parameter] = set()
    for module in [*reversed(chosen), model]:
        trained = [(name, weight) for name, weight in module.named_parameters() if weight.requires_grad]
        kinds = {weight.dtype: name for name, weight in trained if weight not in taken}
        taken |= {weight for _, weight in trained}
        if len(kinds) > 1:
            found = " and ".join(f"{name} in {str(kind).removeprefix('torch.')}" for kind, name in kinds.items())
            what = f"trained weights of one block have several types: {found}"
            raise RunError(Problem(what, "model.dtype", "set model.dtype: float32, and option dtype of plugin fsdp"))


def _with_gradients(names: list[str], model: Any, arguments: Any, outputs: Any) -> Any:
    """A forward hook: the loss depends on these weights by zero, so that every process has gradients to reduce."""
    import torch

    loss = outputs.get("loss")
    if not torch.is_tensor(loss) or not loss.requires_grad:
        return None
    weights = dict(model.named_parameters())
    outputs["loss"] = loss + sum(0 * weights[name].sum() for name in names)
    return outputs
