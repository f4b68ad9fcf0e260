"""Batches without padding: all examples of a batch are joined into a single row."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class PaddingFreeCollator:
    """Joins examples into one row of S tokens, with R examples and N documents.

    A packed example has ``position_ids`` and holds several documents; any other holds one. The first label of each
    example is -100, so that the last token of an example is not trained to predict the first token of the next.
    """

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch.

        Returns:
            ``input_ids``, ``labels``, ``position_ids`` (int64, ``[1, S]``); ``loss_weights`` (float32, ``[1, S]``)
            if any example has them, with 1 for the others; ``cu_seq_lens_q`` and ``cu_seq_lens_k`` (int32,
            ``[N + 1]``), ``max_length_q`` and ``max_length_k`` (int), as in transformers' FlashAttentionKwargs;
            ``row_lengths`` (int64, ``[R]``), the number of tokens of each example.
        """
        import numpy as np
        import torch

        from sftkit.api import IGNORE_INDEX

        lengths = np.array([len(example["input_ids"]) for example in examples])
        borders = np.concatenate([[0], lengths.cumsum()])
        first = borders[:-1][lengths > 0]
        joined = {name: _joined(examples, name, np.int64) for name in ("input_ids", "labels")}
        joined["labels"][first] = IGNORE_INDEX
        if any("loss_weights" in example for example in examples):
            ones = [{"loss_weights": np.ones(length)} for length in lengths]
            weighted = [one | example for one, example in zip(ones, examples, strict=True)]
            joined["loss_weights"] = _joined(weighted, "loss_weights", np.float32)
        places = [example.get("position_ids", range(length)) for example, length in zip(examples, lengths, strict=True)]
        position_ids = np.concatenate([np.asarray(place, dtype=np.int64) for place in places])
        starts = np.append(True, np.diff(position_ids) != 1)
        starts[first] = True  # also if a row begins in the middle of a document
        cu_seqlens = np.append(starts.nonzero()[0], len(position_ids))
        longest = int(np.diff(cu_seqlens).max())
        rows = {**joined, "position_ids": position_ids}
        batch: dict[str, Any] = {name: torch.from_numpy(array)[None] for name, array in rows.items()}
        cumulative: Tensor = torch.from_numpy(cu_seqlens.astype(np.int32))
        batch |= {"cu_seq_lens_q": cumulative, "cu_seq_lens_k": cumulative}
        batch |= {"max_length_q": longest, "max_length_k": longest}
        return batch | {"row_lengths": torch.from_numpy(lengths.astype(np.int64))}


def _joined(examples: list[dict[str, Any]], name: str, dtype: Any) -> Any:
    import numpy as np

    return np.concatenate([np.asarray(example[name], dtype=dtype) for example in examples])
