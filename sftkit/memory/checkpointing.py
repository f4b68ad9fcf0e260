"""Activation checkpointing: the backward runs the forward of a layer again, instead of keeping its activations.

Source: Chen et al., 2016, Training Deep Nets with Sublinear Memory Cost (arXiv 1604.06174).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from sftkit.config.train_fields import CHECKPOINTING_KEYS
from sftkit.errors import ConfigError, Problem
from sftkit.training.attributes import replaced

if TYPE_CHECKING:
    from sftkit.config import RunConfig

FLAG, FUNCTION = "gradient_checkpointing", "_gradient_checkpointing_func"


@contextmanager
def checkpointed(
    model: Any, function: Callable[..., Any], every: int = 1, between: Callable[..., Any] | None = None
) -> Iterator[None]:
    """The model calls its layers through ``function`` inside the context, while it is in training mode.

    Args:
        model: a transformers model, bare or with adapters.
        function: called with a layer's forward and its positional inputs, like `torch.utils.checkpoint.checkpoint`.
        every: checkpoint every n-th layer.
        between: for the other layers, in place of ``function``; None leaves them as they are.

    Raises:
        ConfigError: if the model has no layers that can be checkpointed.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    modules = [module for module in model.modules() if hasattr(module, FLAG) and not _wraps(module)]
    if not modules:
        what = f"{type(model).__name__} has no layers whose activations can be checkpointed"
        raise ConfigError(Problem(what, "model", "turn activation checkpointing off"))
    with ExitStack() as stack:
        layers = 0
        for module in modules:
            is_layer = isinstance(module, GradientCheckpointingLayer)
            chosen = function if not is_layer or layers % every == 0 else between
            stack.enter_context(replaced(module, FUNCTION, chosen or function))
            stack.enter_context(replaced(module, FLAG, chosen is not None))
            layers += is_layer
        yield


def _wraps(module: Any) -> bool:
    """Whether the flag is that of a module inside a wrapper."""
    return not (FLAG in vars(module) or hasattr(type(module), FLAG))


def full_checkpointing(**options: Any) -> Callable[..., Any]:
    """Keep only the inputs of a layer; its second forward uses the random state of the first."""
    from torch.utils.checkpoint import checkpoint

    return functools.partial(checkpoint, **{"use_reentrant": False, **options})


def selective_checkpointing() -> Callable[..., Any]:
    """Keep the products with weights and fused attention, and compute everything else again.

    The kept operations take nearly all of a layer's time; attention scores, if they are computed, are not kept.
    Source: Korthikanti et al., 2022, Reducing Activation Recomputation (arXiv 2205.05198), section 5.
    """
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    return full_checkpointing(context_fn=functools.partial(create_selective_checkpoint_contexts, _kept_operations()))


def _kept_operations() -> list[Any]:
    import torch

    names = (
        *("mm", "addmm", "_grouped_mm", "_flash_attention_forward", "_efficient_attention_forward"),
        *("_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu"),
        *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"),
    )
    packets = [getattr(torch.ops.aten, name) for name in names if hasattr(torch.ops.aten, name)]
    return [packet.default for packet in packets]


def offloaded_checkpointing(function: Callable[..., Any], pin_memory: bool) -> Callable[..., Any]:
    """Move the tensors that ``function`` keeps of a layer to the host's memory until the backward.

    Args:
        function: from `full_checkpointing`.
        pin_memory: whether to pin the host's memory, from which a GPU copies faster.
    """
    from torch.autograd.graph import save_on_cpu

    def run(*args: Any, **options: Any) -> Any:
        with save_on_cpu(pin_memory=pin_memory):
            return function(*args, **options)

    return run


def as_configured(model: Any, config: RunConfig) -> AbstractContextManager[None]:
    """The checkpointing of the section ``train``, as the Trainer turns it on."""
    train = config.train
    if not any(train.get(key) for key in CHECKPOINTING_KEYS):
        return nullcontext()
    options = dict(next((train[f"{key}_kwargs"] for key in CHECKPOINTING_KEYS if train.get(f"{key}_kwargs")), {}))
    every, offload = options.pop("every_n_layers", 1), options.pop("offload", False)
    function = full_checkpointing(**options)
    return checkpointed(model, offloaded_checkpointing(function, pin_memory=True) if offload else function, every)
