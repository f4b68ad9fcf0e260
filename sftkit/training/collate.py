"""The contract of a collator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sftkit.data.columns import LOSS_WEIGHTS
from sftkit.errors import ConfigError, Problem

if TYPE_CHECKING:
    from torch import Tensor


class Collator(Protocol):
    """Makes a batch from examples; holds only data that can be pickled for the workers of a data loader."""

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """A batch: ``input_ids`` and ``labels`` (int64, ``[B, T]``), and whatever else the model needs.

        Rows with ``position_ids`` hold several documents: their batch has ``position_ids`` and no
        ``attention_mask``, which isolates the documents from each other. If an example has ``loss_weights``, so
        has the batch (float32, ``[B, T]``). For tensors that do not have one entry per row, such as images,
        ``row_shares`` maps their name to the number of entries of each row (int64, ``[B]``), or to None if it is
        unknown.
        """


@dataclass(frozen=True)
class KeepsWeights:
    """A collator that is checked to keep the weights of its examples."""

    collator: Collator

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The collator's batch.

        Raises:
            ConfigError: if the batch lacks the weights.
        """
        batch = self.collator(examples)
        if LOSS_WEIGHTS not in batch and any(LOSS_WEIGHTS in example for example in examples):
            what = f"the data has a weight for each token, and the batch has no {LOSS_WEIGHTS}"
            fix = f"use a collator that pads {LOSS_WEIGHTS}, or remove the weights from the data"
            raise ConfigError(Problem(what, "collator", fix))
        return batch
