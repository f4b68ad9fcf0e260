"""Attention within documents, as two attention implementations for transformers: torch's kernel, or one by one.

Legend: B rows, T positions, H heads, K key and value heads, D width of a head.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sftkit.api import Problem, RunError
from sftkit_plugins.flash_attn.documents import Documents
from sftkit_plugins.flash_attn.kernels import by_kernel, grouped, one_by_one

#: The documents of the current forward, and the module that runs it. Hooks on that module set and clear it.
CURRENT: contextvars.ContextVar[tuple[Documents, Any] | None] = contextvars.ContextVar("documents", default=None)


def document_mask(batch_size: int, q_length: int, kv_length: int, q_offset: Any = 0, **rest: Any) -> Any:
    """The documents of the current forward in place of a mask; the mask of `sdpa` if there are none."""
    documents, _ = CURRENT.get() or (None, None)
    whole = q_length == kv_length and isinstance(q_offset, int) and q_offset == 0
    if documents is None or not whole or documents.tokens != batch_size * q_length:
        return sdpa_mask(batch_size, q_length, kv_length, q_offset=q_offset, **rest)
    if rest.get("use_vmap"):  # transformers sets it for masks that a model adds itself
        raise _unsupported("masks that the model adds itself")
    return documents.with_window(rest.get("local_size"))


def varlen_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document: torch's ``varlen_attn`` on a GPU, elsewhere one document at a time.

    Args:
        module: the attention layer.
        query: ``[B, H, T, D]``.
        key: ``[B, K, T, D]``.
        value: ``[B, K, T, D]``.
        attention_mask: `Documents`; anything else is computed as in `sdpa`.
        dropout: must be 0 within documents.
        scaling: factor of the scores, by default ``1 / sqrt(D)``.
        is_causal: must not be False within documents.
        kwargs: as transformers passes them.

    Returns:
        The output ``[B, T, H, D]``, and None for the attention weights.

    Raises:
        RunError: if the layer asks for a feature that is not supported here.
    """
    if not isinstance(attention_mask, Documents):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal=is_causal, **kwargs
        )
    _check(module, dropout, is_causal, kwargs)
    if attention_mask.apart:
        return one_by_one(query, key, value, attention_mask, scaling), None
    return by_kernel(query, key, value, attention_mask, scaling), None


def sdpa_flash_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Like `varlen_attention`, but one document at a time, and always with torch's flash kernel.

    Raises:
        RunError: if a training batch has a mask, because that kernel takes none.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    documents = isinstance(attention_mask, Documents)
    if attention_mask is not None and not documents:
        if module.training:
            raise _unsupported("batches with a padding mask")
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal=is_causal, **kwargs
        )
    if not documents and query.shape[2] != key.shape[2]:  # a step of generation
        return sdpa_attention_forward(module, query, key, value, None, dropout, scaling, is_causal=is_causal, **kwargs)
    _check(module, 0.0, is_causal, kwargs)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        if documents:
            return one_by_one(query, key, value, attention_mask, scaling, dropout), None
        out = scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped(query, key)
        )
    return out.transpose(1, 2).contiguous(), None


def flex_attention(module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    """transformers' flex attention; under autocast, all inputs in its type.

    Rotations leave queries and keys in float32 there, values are in half precision, and torch's compiled kernel does
    not compute that mixture correctly on a GPU.
    """
    from transformers.integrations.flex_attention import flex_attention_forward

    kind = query.device.type
    if not torch.is_autocast_enabled(kind):
        return flex_attention_forward(module, query, key, value, *args, **kwargs)
    dtype = torch.get_autocast_dtype(kind)
    query, key, value = (part.to(dtype) for part in (query, key, value))
    with torch.autocast(kind, enabled=False):
        return flex_attention_forward(module, query, key, value, *args, **kwargs)


def _check(module: Any, dropout: float, is_causal: bool | None, kwargs: dict[str, Any]) -> None:
    """Refuses a layer that asks for a feature that is not supported here."""
    asked = {
        "soft caps on the scores": kwargs.get("softcap") is not None,
        "attention sinks": kwargs.get("s_aux") is not None,
        "a bias by position": kwargs.get("position_bias") is not None,
        "dropout on the scores": dropout > 0,
        "attention to later tokens": not (getattr(module, "is_causal", True) if is_causal is None else is_causal),
    }
    for what, wanted in asked.items():
        if wanted:
            raise _unsupported(what)


def _unsupported(feature: str) -> RunError:
    what = f"this implementation does not support {feature}"
    fix = "choose another implementation, or run without flash_attn"
    return RunError(Problem(what, "plugin flash_attn, option implementation", fix))


FUNCTIONS = {"varlen": varlen_attention, "sdpa_flash": sdpa_flash_attention}
#: Their names in transformers, which treats any name that contains `flash` or `sdpa` as one of its own.
NAMES = {"varlen": "sftkit_varlen", "sdpa_flash": "sftkit_one_by_one"}
_HELD: dict[str, int] = {}


@contextlib.contextmanager
def flex_registered() -> Iterator[str]:
    """Replaces transformers' function for ``flex_attention`` by `flex_attention`, and yields that name.

    The name stays, because transformers and models make masks by it.
    """
    name, functions = "flex_attention", AttentionInterface._global_mapping
    before = functions[name]
    functions[name] = flex_attention
    try:
        yield name
    finally:
        functions[name] = before


@contextlib.contextmanager
def registered(implementation: str) -> Iterator[str]:
    """Registers ``varlen`` or ``sdpa_flash`` with transformers until the last context exits, and yields its name."""
    name = NAMES[implementation]
    _HELD[name] = _HELD.get(name, 0) + 1
    AttentionInterface.register(name, FUNCTIONS[implementation])
    AttentionMaskInterface.register(name, document_mask)
    try:
        yield name
    finally:
        _HELD[name] -= 1
        if not _HELD[name]:
            del _HELD[name]
            AttentionInterface._global_mapping.pop(name, None)
            AttentionMaskInterface._global_mapping.pop(name, None)
