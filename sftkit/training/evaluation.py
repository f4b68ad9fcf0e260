"""Loss and measures of an evaluation, as means over all trained tokens of the set."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from accelerate.utils import recursively_apply
from torch import Tensor
from transformers.trainer_pt_utils import nested_concat

from sftkit.errors import Problem, RunError
from sftkit.training.attributes import replaced
from sftkit.training.batches import Batch
from sftkit.training.head import LossHead
from sftkit.training.measures import or_one


class RowSums(NamedTuple):
    """Sums over the trained tokens of each row of a batch.

    They are kept by row because rows that only fill up the last batch of a process are left out later.

    Attributes:
        names: of the columns: ``loss``, ``weights``, ``tokens``, and the measures; with several sources of data, also
            ``loss`` and ``weights`` of each, as pairs with its name.
        table: float32, ``[rows, columns]``.
        outputs: of the model, with the logits of every position if they were requested; else None.
    """

    names: list[str | tuple[str, str]]
    table: Tensor
    outputs: Any

    @classmethod
    def of(
        cls, head: LossHead, model: Any, inputs: dict[str, Any], logits: bool, sources: Sequence[str] = ()
    ) -> RowSums:
        """From a forward of the model."""
        batch = Batch.of(inputs)
        with torch.no_grad():
            _, result, outputs = head.ask(model, batch.inputs, batch.targets, logits=logits, values=batch.values)
        ones = torch.ones_like(result.losses_K)
        weights = ones if batch.targets.weights_K is None else batch.targets.weights_K.to(ones.device)
        columns: dict[str | tuple[str, str], Tensor] = {"loss": result.losses_K, "weights": weights, "tokens": ones}
        columns.update(result.measures.items())
        for number, name in enumerate(sources):
            # a batch whose sources are unknown makes the mean of every source unknown, and not wrong
            for kind, values in (("loss", result.losses_K), ("weights", weights)):
                columns[kind, name] = ones * torch.nan
                if batch.sources_K is not None:
                    columns[kind, name] = torch.where(batch.sources_K.to(ones.device) == number, values, 0.0)
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


def token_means(sums: Sequence[RowSums]) -> dict[str, float]:
    """The mean loss and the mean of each measure over all trained tokens; empty if there are no sums."""
    if not sums:
        return {}
    table = torch.cat([part.table for part in sums])
    totals = dict(zip(sums[0].names, table.double().sum(0).tolist(), strict=True))
    loss, weights, tokens = (totals.pop(name) for name in ("loss", "weights", "tokens"))
    means = {"loss": loss / (weights or 1.0)}
    for kind, source in [name for name in totals if isinstance(name, tuple) and name[0] == "weights"]:
        weight, total = totals.pop((kind, source)), totals.pop(("loss", source))
        if weight > 0:
            means[f"loss_{source}"] = total / weight
    return means | {str(name): total / max(tokens, 1.0) for name, total in totals.items()}


def gathering_once(accelerator: Any, sharing: int) -> AbstractContextManager[None]:
    """Inside, what the accelerator gathers has the rows of each group of processes once, and not once for each process.

    Args:
        accelerator: of the trainer.
        sharing: how many processes have the same rows.
    """
    if sharing == 1:
        return nullcontext()
    gather = accelerator.gather

    def once(tensors: Any) -> Any:
        processes = (accelerator.num_processes // sharing, sharing, -1)
        return recursively_apply(lambda value: value.unflatten(0, processes)[:, 0].flatten(0, 1), gather(tensors))

    return replaced(accelerator, "gather", once)


def require_metric(arguments: Any, metrics: Mapping[str, float]) -> None:
    """Refuse a training whose best model is chosen by a metric that an evaluation did not compute.

    Args:
        arguments: `transformers.TrainingArguments`.
        metrics: of all evaluation sets.

    Raises:
        RunError: with the names of the metrics.
    """
    name = arguments.metric_for_best_model
    if name is None or (full := f"eval_{name.removeprefix('eval_')}") in metrics:
        return
    known = [metric for metric in metrics if metric.startswith("eval_")]
    fix = f"use one of {', '.join(known)}"
    raise RunError(Problem(f"nothing computes the metric {full}", "train.metric_for_best_model", fix))
