"""Where the documents of a batch start and end: found once per forward, and passed to every attention layer.

Legend: B rows, T positions per row, N documents, S = B * T tokens in the batch, row after row.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


@dataclasses.dataclass(eq=False)
class Documents:
    """The documents of a batch, passed to the layers in place of the attention mask.

    Gradient checkpointing runs layers again in the backward pass, with the same arguments. Documents that are passed as
    an argument are therefore still correct there; state that a forward stored elsewhere would not be.

    Not changed once made, but not a frozen dataclass: in torch 2.11 torch.compile reads every field of one, ``lengths``
    too.

    Attributes:
        cu_seqlens: where each document starts, and the end of the last (int32, ``[N + 1]``).
        tokens: number of tokens in the batch, S.
        longest: length of the longest document.
        lengths: length of each document, on the host; empty if only a kernel reads ``cu_seqlens``.
        apart: whether attention is computed one document at a time, by ``lengths``. It is a separate field because
            torch.compile recompiles for every number of documents if code reads ``lengths``.
        window: number of tokens that a token attends to, itself included; None for all before it.
        band: the mask of ``window`` for the longest document (bool); a shorter document uses its upper left corner.
    """

    cu_seqlens: Tensor
    tokens: int
    longest: int
    lengths: tuple[int, ...] = ()
    apart: bool = False
    window: int | None = None
    band: Tensor | None = None

    def with_window(self, window: int | None) -> Documents:
        """These documents with a sliding window, which has no effect if it covers the longest document."""
        if window is None or window >= self.longest:
            return self
        band = None
        if self.apart:
            places = torch.arange(self.longest, device=self.cu_seqlens.device)
            back = places[:, None] - places
            band = (back >= 0) & (back < window)
        return dataclasses.replace(self, window=window, band=band)


def from_forward(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], apart: bool) -> Documents | None:
    """The documents described by a forward's arguments; None if each row is one document, or with a mask or cache.

    Args:
        module: the module that runs the forward.
        args: positional arguments of the forward.
        kwargs: its keyword arguments. If ``cu_seq_lens_q`` and ``max_length_q`` are present, they are used. Otherwise a
            document starts wherever ``position_ids`` (``[B, T]``) restart; finding that waits for the device once.
        apart: compute attention one document at a time, which is always done without a GPU.
    """
    inputs = {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}
    if inputs.get("attention_mask") is not None or inputs.get("past_key_values") is not None:
        return None
    shaped = inputs.get("input_ids") if inputs.get("input_ids") is not None else inputs.get("inputs_embeds")
    if shaped is None:
        return None
    apart = apart or shaped.device.type != "cuda"
    rows, columns = shaped.shape[:2]
    cu_seqlens, longest = inputs.get("cu_seq_lens_q"), inputs.get("max_length_q")
    if cu_seqlens is not None and longest is not None:
        lengths = tuple(cu_seqlens.diff().tolist()) if apart else ()
        return Documents(cu_seqlens, rows * columns, int(longest), lengths, apart)
    position_ids = inputs.get("position_ids")
    if position_ids is None or position_ids.dim() != 2:
        return None
    return from_positions(position_ids.expand(rows, -1), apart)


def from_positions(position_ids: Tensor, apart: bool) -> Documents | None:
    """The documents of rows whose ``position_ids`` (``[B, T]``) restart at each one; None if each row is one."""
    starts_BT = torch.ones_like(position_ids, dtype=torch.bool)  # noqa: N806 (suffixes are shapes)
    starts_BT[:, 1:] = position_ids.diff(dim=1) != 1
    starts = starts_BT.flatten().nonzero().flatten()
    if len(starts) == len(position_ids):
        return None
    cu_seqlens = torch.cat([starts, starts.new_tensor([position_ids.numel()])]).int()
    lengths = tuple(cu_seqlens.diff().tolist())
    return Documents(cu_seqlens, position_ids.numel(), max(lengths), lengths if apart else (), apart)
