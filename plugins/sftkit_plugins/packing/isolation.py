# ruff: noqa: N806 (suffixes are shapes)
"""Whether the documents of a packed row see each other, tried on the model itself, and what keeps them apart.

Legend: B rows, T positions a row.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from sftkit.errors import ConfigError, Problem
from sftkit.models import undisturbed

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LENGTH = 8  # tokens of each document tried
MASKED = ("sdpa", "eager")  # attention implementations that take a mask of one's own


@contextmanager
def isolated(model: Any, batch_size: int, autocast: torch.dtype | None = None) -> Iterator[None]:
    """The model, inside, keeps the documents of packed rows apart: by itself, or by a mask that it is given.

    Args:
        model: the model.
        batch_size: rows of a batch.
        autocast: type of mixed precision in training; some attention kernels take nothing else.

    Raises:
        ConfigError: if it does so in neither way.
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
            except Exception:  # a model may raise anything for a mask that it does not know
                raise leak from None
            told = (
                "packing: model type %s does not look where documents begin, and gets a mask of tokens x tokens a row"
            )
            logging.getLogger("sftkit").info(told, model.config.model_type)
        yield


@contextmanager
def _masked(model: Any) -> Iterator[None]:
    """Gives each part of the model that makes masks the one of its documents, where there is no other."""

    def enter(part: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        positions = kwargs.get("position_ids")
        if positions is None or kwargs.get("attention_mask") is not None:
            return None
        return args, {
            **kwargs,
            "attention_mask": document_mask(positions, part.dtype, part.config._attn_implementation),
        }

    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    with ExitStack() as hooks:
        # An adapter calls the model's forward past its hooks, and some models their decoder's past its wrapper's.
        for part in causal.modules():
            if part is not causal and hasattr(part, "set_attn_implementation"):
                hooks.callback(part.register_forward_pre_hook(enter, with_kwargs=True).remove)
        yield


def document_mask(position_ids: Tensor, dtype: Any, implementation: str) -> Tensor:
    """What each position sees: itself and those before it in its document, which begins where positions restart.

    Args:
        position_ids: ``[B, T]``.
        dtype: of the mask that eager attention adds to its scores.
        implementation: ``sdpa`` or ``eager``.

    Returns:
        ``[B, 1, T, T]``: bool for sdpa, else 0 and the type's least number.
    """
    import torch

    document_BT = (position_ids == 0).cumsum(1)
    seen = document_BT[:, None, :, None] == document_BT[:, None, None, :]
    seen = seen & torch.ones(seen.shape[-2:], dtype=torch.bool, device=seen.device).tril()
    if implementation == "sdpa":
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def prove_isolation(model: Any, batch_size: int, autocast: torch.dtype | None = None) -> None:
    """Changes the first document of a packed row, and compares the logits of the second.

    Two rows of two documents of 8 tokens, ``position_ids`` restarting and no ``attention_mask``, as in training. They
    go through the model in one batch where training has several rows a batch: some attention implementations isolate
    the documents of single rows only. The model, its modes and the random state are left as they were.

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
    with undisturbed(model, autocast):
        parts = zip(ids.split(min(batch_size, 2)), position_ids.split(min(batch_size, 2)), strict=True)
        outputs = [model(input_ids=part, position_ids=places, use_cache=False).logits for part, places in parts]
    logits = torch.cat(outputs)[:, LENGTH:].float()
    # A masked score adds exactly nothing to the softmax, so that equal documents differ by rounding at most.
    tolerance = max(1e-5, 2 * torch.finfo(outputs[0].dtype).eps) * float(logits.abs().max())
    apart = float((logits[0] - logits[1]).abs().max())
    if not apart <= tolerance:
        raise _leaks(model, batch_size, f"another first document moves the second's logits by {apart:.2g}")


def _takes_position_ids(model: Any) -> bool:
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    parameters = inspect.signature(base.forward).parameters
    return "position_ids" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _leaks(model: Any, batch_size: int, seen: str) -> ConfigError:
    attention = getattr(model.config, "_attn_implementation", None)
    what = f"model type {model.config.model_type} lets packed documents attend to each other"
    what += f" with attention implementation {attention}: {seen}"
    one_row = ", or set train.per_device_train_batch_size: 1" if batch_size > 1 and "flash" in str(attention) else ""
    mend = f"drop packing, or choose another model.options.attn_implementation (sdpa, eager){one_row}"
    return ConfigError(Problem(what, "plugin packing", mend))
