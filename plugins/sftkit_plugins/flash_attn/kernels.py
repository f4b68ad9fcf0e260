"""Attention within the documents of a batch: in one call of torch's kernel, or one document at a time.

Legend: B rows, T positions, H heads, K key and value heads, D width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from sftkit.api import Problem, RunError
from sftkit_plugins.flash_attn.choose import varlen_arguments
from sftkit_plugins.flash_attn.documents import Documents

#: torch 2.11 accepts grouped heads without a flag; later versions need the flag.
HAS_GQA_FLAG = "enable_gqa" in varlen_arguments()


@torch.compiler.disable
def one_by_one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: Documents,
    scaling: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of each document separately (``[B, T, H, D]``). No score between two documents is computed."""
    rows, _, columns, _ = query.shape
    parts = [_as_one_row(tensor).split(documents.lengths, dim=2) for tensor in (query, key, value)]
    outputs = []
    for q, k, v in zip(*parts, strict=True):
        length = q.shape[2]
        band = None if documents.window is None or documents.window >= length else documents.band
        out = scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if band is None else band[:length, :length],
            dropout_p=dropout,
            is_causal=band is None,
            scale=scaling,
            enable_gqa=grouped(query, key),
        )
        outputs.append(out.transpose(1, 2))
    return torch.cat(outputs, dim=1).view(rows, columns, query.shape[1], value.shape[-1])


def by_kernel(query: Tensor, key: Tensor, value: Tensor, documents: Documents, scaling: float | None) -> Tensor:
    """Attention of all documents in one call of torch's kernel (``[B, T, H, D]``), in half precision."""
    from torch.nn.attention.varlen import varlen_attn

    rows, heads, columns, width = query.shape
    dtype, value_width = _half(query, key, value), value.shape[-1]
    # The kernel needs the same width for all three, a multiple of 8. Zeros do not change the scores, and the extra
    # columns of the values are cut off.
    full = -(-max(width, value_width) // 8) * 8
    q, k, v = (_widened(tensor.transpose(1, 2).flatten(0, 1).to(dtype), full) for tensor in (query, key, value))
    cu_seqlens = documents.cu_seqlens.to(query.device)
    flag: dict[str, Any] = {"enable_gqa": grouped(query, key)} if HAS_GQA_FLAG else {}
    out: Any = varlen_attn(
        q,
        k,
        v,
        cu_seqlens,
        cu_seqlens,
        documents.longest,
        documents.longest,
        scale=width**-0.5 if scaling is None else scaling,
        # The kernel counts only the tokens before a token; the window of transformers includes the token itself.
        window_size=(-1 if documents.window is None else documents.window - 1, 0),
        **flag,
    )
    made: Tensor = out.view(rows, columns, heads, full)[..., :value_width]
    return made


def _widened(tensor: Tensor, width: int) -> Tensor:
    """The tensor, with its last dimension padded to ``width`` with zeros."""
    missing = width - tensor.shape[-1]
    return pad(tensor, (0, missing)) if missing else tensor


def _as_one_row(tensor: Tensor) -> Tensor:
    """``[B, H, T, D]`` as ``[1, H, B * T, D]``, with the rows joined."""
    return tensor if len(tensor) == 1 else tensor.transpose(1, 2).flatten(0, 1).transpose(0, 1)[None]


def grouped(query: Tensor, key: Tensor) -> bool:
    """Whether several heads share a key and value head."""
    return query.shape[1] != key.shape[1]


def _half(*tensors: Tensor) -> torch.dtype:
    """The dtype for the kernel: that of autocast, or else the half precision of any of the tensors.

    Norms in float32 can leave queries and keys in float32, under autocast or with adapters on a half-precision model.
    """
    kind = tensors[0].device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    half = (tensor.dtype for tensor in tensors if tensor.dtype in (torch.bfloat16, torch.float16))
    if (dtype := next(half, None)) is None:
        what = f"torch's kernel needs half precision, but the model computes in {tensors[0].dtype}"
        raise RunError(Problem(what, "plugin flash_attn", "set model.dtype: bfloat16, or train.bf16: true"))
    return dtype
