"""Where the documents of a batch lie: known to every attention layer, found once a forward.

Legend: B rows, T positions a row, N documents, S = B * T tokens of the batch, row behind row.
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
    """The documents of a batch; it takes the place of the attention mask on the way to the layers.

    Layers are recomputed in the backward under gradient checkpointing, with the arguments that they had: what comes as
    an argument is right there too, and what a forward left behind somewhere is not.

    Not changed once made, but not a frozen dataclass: in torch 2.11 torch.compile reads every field of one, ``lengths``
    too.

    Attributes:
        cu_seqlens: where each document starts, and the end of the last (int32, ``[N + 1]``).
        tokens: of the batch, S.
        longest: tokens of the longest.
        lengths: tokens of each, on the host; empty where only a kernel reads ``cu_seqlens``.
        apart: whether they are attended one at a time, by ``lengths``. A field of its own, since torch.compile would
            compile anew for every number of documents where code asks for ``lengths``.
        window: tokens that a token sees, itself included; None for all before it.
        band: the mask of ``window`` in the longest document (bool); a shorter one has its upper left corner.
    """

    cu_seqlens: Tensor
    tokens: int
    longest: int
    lengths: tuple[int, ...] = ()
    apart: bool = False
    window: int | None = None
    band: Tensor | None = None

    def seen_through(self, window: int | None) -> Documents:
        """These documents under a sliding window; a window that holds the longest of them hides nothing."""
        if window is None or window >= self.longest:
            return self
        band = None
        if self.apart:
            places = torch.arange(self.longest, device=self.cu_seqlens.device)
            back = places[:, None] - places
            band = (back >= 0) & (back < window)
        return dataclasses.replace(self, window=window, band=band)


def from_forward(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], apart: bool) -> Documents | None:
    """The documents that a forward's arguments tell of, or None where a row is one document, or has a mask or cache.

    Args:
        module: whose forward it is.
        args: positional arguments of the forward.
        kwargs: its keyword arguments. ``cu_seq_lens_q`` and ``max_length_q`` are taken as they are; else the documents
            are found where ``position_ids`` (``[B, T]``) do not count on, which waits for the device once.
        apart: attend to the documents one at a time, as is done without a GPU anyway.
    """
    given = {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}
    if given.get("attention_mask") is not None or given.get("past_key_values") is not None:
        return None
    shaped = given.get("input_ids") if given.get("input_ids") is not None else given.get("inputs_embeds")
    if shaped is None:
        return None
    apart = apart or shaped.device.type != "cuda"
    rows, columns = shaped.shape[:2]
    cu_seqlens, longest = given.get("cu_seq_lens_q"), given.get("max_length_q")
    if cu_seqlens is not None and longest is not None:
        lengths = tuple(cu_seqlens.diff().tolist()) if apart else ()
        return Documents(cu_seqlens, rows * columns, int(longest), lengths, apart)
    position_ids = given.get("position_ids")
    if position_ids is None or position_ids.dim() != 2:
        return None
    return from_positions(position_ids.expand(rows, -1), apart)


def from_positions(position_ids: Tensor, apart: bool) -> Documents | None:
    """The documents of rows whose ``position_ids`` (``[B, T]``) start anew at each; None if each row is one."""
    starts_BT = torch.ones_like(position_ids, dtype=torch.bool)  # noqa: N806 (suffixes are shapes)
    starts_BT[:, 1:] = position_ids.diff(dim=1) != 1
    starts = starts_BT.flatten().nonzero().flatten()
    if len(starts) == len(position_ids):
        return None
    cu_seqlens = torch.cat([starts, starts.new_tensor([position_ids.numel()])]).int()
    lengths = tuple(cu_seqlens.diff().tolist())
    return Documents(cu_seqlens, position_ids.numel(), max(lengths), lengths if apart else (), apart)
