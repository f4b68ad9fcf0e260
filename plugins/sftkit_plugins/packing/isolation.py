# ruff: noqa: N806 (suffixes are shapes)
"""Isolation of the documents of a packed row: proved on the model itself, or enforced by a mask.

Legend: B rows, T positions of a row.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from sftkit.api import ConfigError, Problem, base_model, evaluating

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LENGTH = 8  # tokens of each document in the test
MASKED = ("sdpa", "eager")  # attention implementations that accept a custom mask


@contextmanager
def isolated(model: Any, batch_size: int, autocast: torch.dtype | None = None) -> Iterator[None]:
    """A context in which the model isolates the documents of packed rows: by itself, or by a block-diagonal mask.

    Args:
        model: the model.
        batch_size: rows of a batch.
        autocast: type of mixed precision in training; some attention kernels take nothing else.

    Raises:
        ConfigError: if neither works.
    """
    with ExitStack() as stack:
        try:
            prove_isolation(model, batch_size, autocast)
        except ConfigError as leak:
            if not _takes_position_ids(model) or getattr(model.config, "_attn_implementation", None) not in MASKED:
                raise
            stack.enter_context(_masked(model))
            try:
                prove_isolation(model, batch_size, autocast)
            except Exception:  # a model may raise anything for a mask that it does not support
                raise leak from None
            text = "packing: model type %s ignores document boundaries; a block-diagonal mask is added"
            logging.getLogger("sftkit").info(text, model.config.model_type)
        yield


@contextmanager
def _masked(model: Any) -> Iterator[None]:
    """Pass the block-diagonal mask to each part of the model that makes masks, unless it has another mask."""

    def enter(part: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        positions = kwargs.get("position_ids")
        if positions is None or kwargs.get("attention_mask") is not None:
            return None
        return args, {
            **kwargs,
            "attention_mask": document_mask(positions, part.dtype, part.config._attn_implementation),
        }

    causal = base_model(model)
    with ExitStack() as hooks:
        # Adapters call the model's forward without its hooks, and some models their decoder's without its wrapper's.
        for part in causal.modules():
            if part is not causal and hasattr(part, "set_attn_implementation"):
                hooks.callback(part.register_forward_pre_hook(enter, with_kwargs=True).remove)
        yield


def document_mask(position_ids: Tensor, dtype: Any, implementation: str) -> Tensor:
    """The block-diagonal causal mask: a document begins where positions restart.

    Args:
        position_ids: ``[B, T]``.
        dtype: type of the mask that eager attention adds to its scores.
        implementation: ``sdpa`` or ``eager``.

    Returns:
        ``[B, 1, T, T]``: bool for sdpa, otherwise 0 and the type's smallest number.
    """
    import torch

    document_BT = (position_ids == 0).cumsum(1)
    seen = document_BT[:, None, :, None] == document_BT[:, None, None, :]
    seen = seen & torch.ones(seen.shape[-2:], dtype=torch.bool, device=seen.device).tril()
    if implementation == "sdpa":
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def prove_isolation(model: Any, batch_size: int, autocast: torch.dtype | None = None) -> None:
    """Change the first document of a packed row, and compare the logits of the second.

    The test uses two rows of two documents of 8 tokens each, with ``position_ids`` that restart and no
    ``attention_mask``, as in training. They form one batch if training has several rows per batch, since some attention
    implementations isolate documents only in batches of one row. Model, modes and random state are unchanged.

    Raises:
        ConfigError: if the second document's logits change, or the model takes no ``position_ids``.
    """
    import torch

    if not _takes_position_ids(model):
        raise _leaks(model, batch_size, "its forward takes no position_ids")
    embedding = model.get_input_embeddings()
    device = next(embedding.parameters()).device
    first, other, second = torch.arange(3 * LENGTH, device=device).view(3, LENGTH) % len(embedding.weight)
    ids = torch.stack([torch.cat([first, second]), torch.cat([other, second])])
    position_ids = torch.arange(LENGTH, device=device).repeat(2, 2)
    with evaluating(model, autocast):
        parts = zip(ids.split(min(batch_size, 2)), position_ids.split(min(batch_size, 2)), strict=True)
        outputs = [model(input_ids=part, position_ids=places, use_cache=False).logits for part, places in parts]
    logits = torch.cat(outputs)[:, LENGTH:].float()
    # A masked score contributes exactly 0 to the softmax, so equal documents differ at most by rounding.
    tolerance = max(1e-5, 2 * torch.finfo(outputs[0].dtype).eps) * float(logits.abs().max())
    apart = float((logits[0] - logits[1]).abs().max())
    if not apart <= tolerance:
        raise _leaks(model, batch_size, f"changing the first document moves the logits of the second by {apart:.2g}")


def _takes_position_ids(model: Any) -> bool:
    base = base_model(model)
    parameters = inspect.signature(base.forward).parameters
    return "position_ids" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _leaks(model: Any, batch_size: int, seen: str) -> ConfigError:
    attention = getattr(model.config, "_attn_implementation", None)
    what = f"model type {model.config.model_type} lets packed documents attend to each other"
    what += f" with attention implementation {attention}: {seen}"
    one_row = ", or set train.per_device_train_batch_size: 1" if batch_size > 1 and "flash" in str(attention) else ""
    fix = f"drop packing, or choose another model.options.attn_implementation (sdpa, eager){one_row}"
    return ConfigError(Problem(what, "plugin packing", fix))
