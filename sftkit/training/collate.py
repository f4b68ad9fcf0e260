"""What a collator is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sftkit.data.columns import LOSS_WEIGHTS
from sftkit.errors import ConfigError, Problem

if TYPE_CHECKING:
    from torch import Tensor


class Collator(Protocol):
    """Makes a batch from examples; plain data inside, so that it can be pickled to data workers."""

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch: ``input_ids`` and ``labels`` (int64, ``[B, T]``) and what the model needs besides.

        Rows with ``position_ids`` hold several documents: their batch has ``position_ids`` and no
        ``attention_mask``, which is what isolates the documents from each other. Where some example has
        ``loss_weights``, so has the batch (float32, ``[B, T]``). Of tensors that do not have one entry a row, as
        pictures, ``row_shares`` says how many entries each row has: name to int64 ``[B]``, or None where that
        cannot be told.
        """


@dataclass(frozen=True)
class KeepsWeights:
    """A collator whose batches are seen to hold the weights that their examples have."""

    collator: Collator

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The collator's batch.

        Raises:
            ConfigError: if the collator leaves the weights out.
        """
        batch = self.collator(examples)
        if LOSS_WEIGHTS not in batch and any(LOSS_WEIGHTS in example for example in examples):
            what = f"the collator leaves out how much each token counts ({LOSS_WEIGHTS}), which the data says"
            raise ConfigError(Problem(what, "collator", "use the plugin pad, or take the weights out of the data"))
        return batch
