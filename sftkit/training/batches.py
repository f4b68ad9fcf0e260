# ruff: noqa: N803, N806 (suffixes are shapes)
"""Batches on their way to the model: what is trained in them, and how one is cut into smaller ones.

Legend: B rows, T positions, R examples of a padding-free batch (one row), K trained positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sftkit.errors import ConfigError, Problem, RunError
from sftkit.training.collate import Collator
from sftkit.training.head import Targets, trained_positions

SHARES = "row_shares"
POSITIONS = "trained_positions"  # known before a batch is on its device, where finding them would wait for it
CUMULATIVE = ("cu_seq_lens_q", "cu_seq_lens_k")


@dataclass(frozen=True)
class WithPositions:
    """A collator's batches, with the positions that are trained."""

    collator: Collator

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch."""
        batch = dict(self.collator(examples))
        if "labels" in batch:
            batch[POSITIONS] = trained_positions(batch["labels"])
        return batch


@dataclass(frozen=True)
class Batch:
    """A batch as the step sees it.

    Attributes:
        inputs: of the model's forward.
        targets: what is trained.
        row_lengths: tokens of each example of a padding-free batch (``[R]``); None where each has a row.
    """

    inputs: dict[str, Any]
    targets: Targets
    row_lengths: Tensor | None

    @classmethod
    def of(cls, inputs: dict[str, Any]) -> Batch:
        """From what a collator made.

        Raises:
            ConfigError: if it made no labels.
        """
        if "labels" not in inputs:
            what = f"the collator gives no labels, only {', '.join(inputs)}"
            raise ConfigError(Problem(what, "collator", "let it make labels, -100 where nothing is trained"))
        inputs = {**inputs, "use_cache": False}  # with a cache, packed documents would see each other
        row_lengths = inputs.pop("row_lengths", None)
        inputs.pop(SHARES, None)
        targets = Targets.of(inputs.pop("labels"), inputs.pop("loss_weights", None), inputs.pop(POSITIONS, None))
        return cls(inputs, targets, row_lengths)

    @property
    def tokens(self) -> int | Tensor:
        """Tokens without padding; inside packed rows, padding counts."""
        mask = self.inputs.get("attention_mask")
        rows, columns = self.targets.shape
        return rows * columns if mask is None else mask.sum()

    def by_row(self, values_K: Tensor) -> Tensor:
        """Sums over each example's trained tokens."""
        rows, columns = self.targets.shape
        positions_K = self.targets.positions_K.to(values_K.device)
        if self.row_lengths is None:
            row_K = positions_K // columns
        else:
            ends_R = self.row_lengths.to(values_K.device).cumsum(0)
            row_K, rows = torch.searchsorted(ends_R, positions_K, right=True), len(self.row_lengths)
        return values_K.new_zeros(rows).index_add(0, row_K, values_K)


def rows_of(inputs: dict[str, Any]) -> int:
    """Examples of a batch."""
    return len(inputs["row_lengths"] if "row_lengths" in inputs else inputs["input_ids"])


def pieces(inputs: dict[str, Any], size: int) -> Iterator[dict[str, Any]]:
    """A batch as smaller ones of at most ``size`` examples.

    Raises:
        RunError: if something in it does not say which example it belongs to.
    """
    rows = rows_of(inputs)
    if rows <= size:
        yield inputs
        return
    inputs = {name: value for name, value in inputs.items() if name != POSITIONS}
    for low in range(0, rows, size):
        at = slice(low, min(low + size, rows))
        yield _columns(inputs, at) if "row_lengths" in inputs else _rows(inputs, at, rows)


def _rows(inputs: dict[str, Any], at: slice, rows: int) -> dict[str, Any]:
    shares = inputs.get(SHARES, {})
    cut: dict[str, Any] = {}
    for name, value in inputs.items():
        if name == SHARES:
            cut[name] = {each: None if share is None else share[at] for each, share in value.items()}
        elif shares.get(name) is not None:
            borders = [0, *shares[name].cumsum(0).tolist()]
            cut[name] = value[borders[at.start] : borders[at.stop]]
        elif torch.is_tensor(value) and (name in shares or value.dim() == 0 or len(value) != rows):
            what = f"out of memory, and a batch with {name} of shape {tuple(value.shape)} cannot be cut by its rows"
            raise RunError(Problem(what, "train", "lower train.per_device_train_batch_size"))
        else:
            cut[name] = value[at] if torch.is_tensor(value) else value
    return {name: value for name, value in cut.items() if name not in shares or len(value)}


def _columns(inputs: dict[str, Any], at: slice) -> dict[str, Any]:
    """Some examples of a padding-free batch."""
    borders = [0, *inputs["row_lengths"].cumsum(0).tolist()]
    start, end = borders[at.start], borders[at.stop]
    cut: dict[str, Any] = {}
    for name, value in inputs.items():
        if name == "row_lengths":
            cut[name] = value[at]
        elif name in CUMULATIVE:
            cut[name] = value[(value >= start) & (value <= end)] - start
        elif torch.is_tensor(value) and value.dim() > 1:
            cut[name] = value[..., start:end]
        else:
            cut[name] = value
    return cut
