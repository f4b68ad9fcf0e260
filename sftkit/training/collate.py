"""What a collator is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Collator(Protocol):
    """Makes a batch from examples; plain data inside, so that it can be pickled to data workers."""

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch: ``input_ids`` and ``labels`` (int64, ``[B, T]``) and what the model needs besides.

        Rows with ``position_ids`` hold several documents: their batch has ``position_ids`` and no
        ``attention_mask``, which is what isolates the documents from each other.
        """
