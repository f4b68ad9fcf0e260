"""Loss and measures of an evaluation, as means over all trained tokens of the set."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.trainer_pt_utils import nested_concat

from sftkit.training.batches import Batch
from sftkit.training.head import LossHead
from sftkit.training.measures import or_one


@dataclass(frozen=True)
class RowSums:
    """Sums over the trained tokens of each row of a batch.

    They are kept by row because some rows of a process's last batch only fill it up, and are left out later.

    Attributes:
        names: of the columns: ``loss``, ``weights``, ``tokens``, and the measures.
        table: float32, ``[rows, columns]``.
        outputs: of the model, with the logits of every position if they were requested; else None.
    """

    names: list[str]
    table: Tensor
    outputs: Any

    @classmethod
    def of(cls, head: LossHead, model: Any, inputs: dict[str, Any], logits: bool) -> RowSums:
        """From a forward of the model."""
        batch = Batch.of(inputs)
        with torch.no_grad():
            _, result, outputs = head.ask(model, batch.inputs, batch.targets, logits=logits)
        ones = torch.ones_like(result.losses_K)
        weights = ones if batch.targets.weights_K is None else batch.targets.weights_K.to(ones.device)
        columns = {"loss": result.losses_K, "weights": weights, "tokens": ones, **result.measures}
        table = torch.stack([batch.by_row(values) for values in columns.values()], dim=1)
        return cls(list(columns), table, outputs if logits else None)

    @classmethod
    def joined(cls, parts: Sequence[RowSums]) -> RowSums:
        """From those of micro-batches."""
        logits = parts[0].outputs is not None
        outputs = functools.reduce(nested_concat, [part.outputs for part in parts]) if logits else None
        return cls(parts[0].names, torch.cat([part.table for part in parts]), outputs)

    @property
    def mean_loss(self) -> Tensor:
        """The mean loss of the batch (a scalar)."""
        return self.table[:, 0].sum() / or_one(self.table[:, 1].sum())


class EvaluationSums:
    """The sums of the rows of an evaluation set."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._tables: list[Tensor] = []

    def add(self, names: list[str], table: Tensor) -> None:
        """Add the rows of a batch, over all processes."""
        self._names = names
        self._tables.append(table)

    def means(self) -> dict[str, float]:
        """The mean loss and the mean of each measure over the trained tokens; empty if there were no batches."""
        if not self._tables:
            return {}
        totals = dict(zip(self._names, torch.cat(self._tables).double().sum(0).tolist(), strict=True))
        loss, weights, tokens = (totals.pop(name) for name in ("loss", "weights", "tokens"))
        return {"loss": loss / (weights or 1.0), **{n: total / max(tokens, 1.0) for n, total in totals.items()}}
