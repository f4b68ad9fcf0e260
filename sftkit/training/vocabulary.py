# ruff: noqa: N803 (suffixes are shapes)
"""An output head that is divided among processes by tokens of the vocabulary.

Legend: k tokens of a chunk, V vocabulary, v the process's part of it, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class VocabularyPart:
    """The rows of an output head that a process has. All processes of the group have the same hidden states.

    Attributes:
        weight: ``[v, D]``, in the graph of the head's weight.
        bias: ``[v]``, if the head has one.
        start: the token of the first row.
        width: rows of every part but the last ones, which may have fewer.
        vocabulary: rows of all parts.
        group: the processes.
    """

    weight: Tensor
    bias: Tensor | None
    start: int
    width: int
    vocabulary: int
    group: Any

    @classmethod
    def of(cls, head: Any) -> VocabularyPart | None:
        """Of a head whose weight is a DTensor with rows in several processes; None of any other."""
        weight, bias = getattr(head, "weight", None), getattr(head, "bias", None)
        if not isinstance(weight, DTensor) or len(weight.placements) != 1 or not weight.placements[0].is_shard(0):
            return None
        mesh, vocabulary = weight.device_mesh, weight.shape[0]
        width = -(-vocabulary // mesh.size())
        start = min(mesh.get_local_rank() * width, vocabulary)
        own_bias = None if bias is None else bias.to_local()
        return cls(weight.to_local(), own_bias, start, width, vocabulary, mesh.get_group())

    def gather(self, logits_kv: Tensor) -> Tensor:
        """The logits of the whole vocabulary, ``[k, V]``; without a graph."""
        tokens, own = logits_kv.shape
        padded_kv = torch.nn.functional.pad(logits_kv.detach(), (0, self.width - own)).contiguous()
        processes = torch.distributed.get_world_size(self.group)
        gathered = padded_kv.new_empty(processes * tokens, self.width)
        torch.distributed.all_gather_into_tensor(gathered, padded_kv, group=self.group)
        return gathered.unflatten(0, (processes, tokens)).transpose(0, 1).flatten(1)[:, : self.vocabulary]

    def own(self, values_kV: Tensor) -> Tensor:
        """The values of the process's tokens, ``[k, v]``."""
        return values_kV[:, self.start : self.start + len(self.weight)]

    def sum(self, values: Tensor) -> None:
        """Replace the values by their sums over the processes."""
        torch.distributed.all_reduce(values, group=self.group)
