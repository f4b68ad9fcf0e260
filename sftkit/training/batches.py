# ruff: noqa: N803, N806 (suffixes are shapes)
"""Batches on their way to the model: the trained positions of a batch, and its split into micro-batches.

Legend: B rows, T positions, R examples of a padding-free batch (one row), K trained positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sftkit.errors import ConfigError, Problem, RunError
from sftkit.training.collate import Collator
from sftkit.training.targets import Targets, trained_positions
from sftkit.user_modules import DirectoryFinder, finders

ROW_SHARES = "row_shares"
POSITIONS = "trained_positions"  # found before the batch is on its device, where finding them would wait for it
FRACTION = "fraction_of_batch"
ROW = "row_number"  # of an example; from 1
ROWS = "row_numbers"  # of the examples of a batch: a list, so that it stays on the host
CUMULATIVE = ("cu_seq_lens_q", "cu_seq_lens_k")


@dataclass(frozen=True)
class WithPositions:
    """A collator whose batches contain their trained positions, and the numbers of their rows if they have some."""

    collator: Collator

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch."""
        numbers = [example[ROW] for example in examples if ROW in example]
        if numbers:
            examples = [{name: value for name, value in example.items() if name != ROW} for example in examples]
        batch: dict[str, Any] = dict(self.collator(examples))
        if numbers:
            batch[ROWS] = numbers
        if "labels" in batch:
            batch[POSITIONS] = trained_positions(batch["labels"])
        return batch

    def __reduce__(self) -> tuple[Any, ...]:
        """In a data worker, the user's modules are found before the collator is loaded, which may be one of theirs."""
        return _with_positions, (finders(), self.collator)


def _with_positions(_: list[DirectoryFinder], collator: Collator) -> WithPositions:
    return WithPositions(collator)


@dataclass(frozen=True)
class Batch:
    """A batch in the form that the training step needs.

    Attributes:
        inputs: arguments of the model's forward.
        targets: the trained tokens.
        row_lengths: tokens of each example of a padding-free batch (``[R]``); None if each example has a row.
        fraction: part of the collator's batch, if that was split; else 1.
    """

    inputs: dict[str, Any]
    targets: Targets
    row_lengths: Tensor | None
    fraction: float

    @classmethod
    def of(cls, inputs: dict[str, Any]) -> Batch:
        """From a collator's batch, or a micro-batch of one.

        Raises:
            ConfigError: if there are no labels.
        """
        if "labels" not in inputs:
            what = f"the collator gives no labels, only {', '.join(inputs)}"
            raise ConfigError(Problem(what, "collator", "add labels to its batches, with -100 for untrained tokens"))
        inputs = {**inputs, "use_cache": False}  # with a cache, packed documents would attend to each other
        row_lengths = inputs.pop("row_lengths", None)
        inputs.pop(ROW_SHARES, None)
        fraction = inputs.pop(FRACTION, 1.0)
        targets = Targets.of(inputs.pop("labels"), inputs.pop("loss_weights", None), inputs.pop(POSITIONS, None))
        return cls(inputs, targets, row_lengths, fraction)

    @property
    def tokens(self) -> int | Tensor:
        """The number of tokens without padding; padding inside packed rows counts."""
        mask = self.inputs.get("attention_mask")
        rows, columns = self.targets.shape
        return rows * columns if mask is None else mask.sum()

    def by_row(self, values_K: Tensor) -> Tensor:
        """The sum over the trained tokens of each example."""
        rows, columns = self.targets.shape
        positions_K = self.targets.positions_K.to(values_K.device)
        if self.row_lengths is None:
            row_K = positions_K // columns
        else:
            ends_R = self.row_lengths.to(values_K.device).cumsum(0)
            row_K, rows = torch.searchsorted(ends_R, positions_K, right=True), len(self.row_lengths)
        return values_K.new_zeros(rows).index_add(0, row_K, values_K)


def window_weight(batches: Iterable[dict[str, Any]], device: torch.device) -> Tensor:
    """The sum of the weights of the trained tokens of an accumulation window (a scalar)."""
    total = torch.zeros((), device=device)
    for batch in batches:
        targets = Batch.of(batch).targets
        total = total + (len(targets.tokens_K) if targets.weights_K is None else targets.weights_K.sum().to(device))
    return total


def rows_of(inputs: dict[str, Any]) -> int:
    """The number of examples of a batch."""
    return len(inputs["row_lengths"] if "row_lengths" in inputs else inputs["input_ids"])


def micro_batches(inputs: dict[str, Any], size: int) -> Iterator[dict[str, Any]]:
    """A batch as micro-batches of at most ``size`` examples.

    Raises:
        RunError: if the batch has a tensor whose entries cannot be assigned to its examples.
    """
    rows = rows_of(inputs)
    if rows <= size:
        yield inputs
        return
    inputs = {name: value for name, value in inputs.items() if name != POSITIONS}
    split = _columns if "row_lengths" in inputs else _rows
    fraction = 1 / -(-rows // size)
    for low in range(0, rows, size):
        yield {**split(inputs, slice(low, min(low + size, rows))), FRACTION: fraction}


def _rows(inputs: dict[str, Any], at: slice) -> dict[str, Any]:
    rows, shares = rows_of(inputs), inputs.get(ROW_SHARES, {})
    chosen: dict[str, Any] = {}
    for name, value in inputs.items():
        if name == ROW_SHARES:
            chosen[name] = {each: None if share is None else share[at] for each, share in value.items()}
        elif shares.get(name) is not None:
            borders = [0, *shares[name].cumsum(0).tolist()]
            chosen[name] = value[borders[at.start] : borders[at.stop]]
        elif torch.is_tensor(value) and (name in shares or value.dim() == 0 or len(value) != rows):
            what = f"out of memory, and {name} of shape {tuple(value.shape)} cannot be split by rows"
            raise RunError(Problem(what, "train", "lower train.per_device_train_batch_size"))
        else:
            chosen[name] = value[at] if torch.is_tensor(value) else value
    return {name: value for name, value in chosen.items() if name not in shares or len(value)}


def _columns(inputs: dict[str, Any], at: slice) -> dict[str, Any]:
    """Some examples of a padding-free batch."""
    borders = [0, *inputs["row_lengths"].cumsum(0).tolist()]
    start, end = borders[at.start], borders[at.stop]
    chosen: dict[str, Any] = {}
    for name, value in inputs.items():
        if name == "row_lengths":
            chosen[name] = value[at]
        elif name in CUMULATIVE:
            chosen[name] = value[(value >= start) & (value <= end)] - start
        elif torch.is_tensor(value) and value.dim() > 1:
            chosen[name] = value[..., start:end]
        else:
            chosen[name] = value
    return chosen
