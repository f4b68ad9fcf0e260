"""Calls of a model whose weights are partitioned, but which DeepSpeed has not wrapped yet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch.autograd.graph import saved_tensors_hooks


class View(NamedTuple):
    """What autograd saves of a gathered weight: where it lies in the weight, but not its values."""

    weight: Any
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


@contextmanager
def gathered_by_module(model: Any) -> Iterator[None]:
    """Each module's weights are whole while it computes, and again when the backward pass needs them.

    All processes have to make the same calls.

    Args:
        model: a model whose weights ``deepspeed.zero.Init`` has partitioned.
    """
    import deepspeed

    contexts: dict[Any, Any] = {}
    weights: dict[int, Any] = {}  # those that are whole now, by the place of their values

    def gather(module: Any, *_: Any) -> None:
        own = list(module.parameters(recurse=False))
        contexts[module] = deepspeed.zero.GatheredParameters(own)
        contexts[module].__enter__()
        weights.update({weight.untyped_storage().data_ptr(): weight for weight in own if hasattr(weight, "ds_id")})

    def release(module: Any, *_: Any) -> None:
        for weight in module.parameters(recurse=False):
            weights.pop(weight.untyped_storage().data_ptr(), None)
        contexts.pop(module).__exit__(None, None, None)

    def pack(tensor: Any) -> Any:
        weight = weights.get(tensor.untyped_storage().data_ptr())
        if weight is None:
            return tensor
        return View(weight, tensor.size(), tensor.stride(), tensor.storage_offset() - weight.storage_offset())

    def unpack(saved: Any) -> Any:
        if isinstance(saved, torch.Tensor):
            return saved
        with deepspeed.zero.GatheredParameters([saved.weight]):
            whole = saved.weight.detach().clone()
        return whole.as_strided(saved.size, saved.stride, saved.offset)

    with ExitStack() as stack:
        for module in model.modules():
            if next(module.parameters(recurse=False), None) is not None:
                stack.callback(module.register_forward_pre_hook(gather).remove)
                stack.callback(module.register_forward_hook(release, always_call=True).remove)
        stack.enter_context(saved_tensors_hooks(pack, unpack))
        yield


def unpartition_tables(model: Any) -> None:
    """Make the weights of the embeddings whole again, as ordinary ones. Changes the model.

    They may grow then, and DeepSpeed partitions them with the rest of the model.
    """
    import deepspeed

    whole: dict[int, Any] = {}
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        for name, weight in [] if module is None else list(module.named_parameters(recurse=False)):
            if not hasattr(weight, "ds_id"):
                continue
            if weight.ds_id not in whole:  # tied weights stay tied
                with deepspeed.zero.GatheredParameters([weight]):
                    values = weight.detach().clone()
                whole[weight.ds_id] = torch.nn.Parameter(values, requires_grad=weight.requires_grad)
            setattr(module, name, whole[weight.ds_id])
