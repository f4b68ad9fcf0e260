# ruff: noqa: N803, N806, N815 (suffixes are shapes)
"""Batches on their way to the model: the trained positions of a batch, and its split into micro-batches.

Legend: B rows, T positions, R examples of a padding-free batch (one row), K trained positions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sftkit.data.columns import SOURCES
from sftkit.errors import ConfigError, Problem, RunError
from sftkit.training.collate import Collator
from sftkit.training.loss import TokenValues
from sftkit.training.targets import Targets, trained_positions
from sftkit.user_modules import DirectoryFinder, finders

ROW_SHARES = "row_shares"
POSITIONS = "trained_positions"  # found before the batch is on its device, where finding them would wait for it
FRACTION = "fraction_of_batch"
ROW = "row_number"  # of an example; from 1
VALUES = "token_values"  # of the trained tokens, by name: ``[K, ...]``
SOURCES_BT = "source_numbers"  # of the tokens of a batch: int16, ``[B, T]``; -1 for padding
ROWS = "row_numbers"  # of the examples of a batch: a list, so that it stays on the host
CUMULATIVE = ("cu_seq_lens_q", "cu_seq_lens_k")


@dataclass(frozen=True)
class WithPositions:
    """A collator whose batches contain their trained positions.

    They also contain the numbers of their rows, and of the sources of their tokens, if the examples have them.

    Attributes:
        collator: the collator.
        values: makes values of the trained tokens; None if the loss needs none.
    """

    collator: Collator
    values: TokenValues | None = None

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch."""
        numbers = [example[ROW] for example in examples if ROW in example]
        sources = [example[SOURCES] for example in examples if SOURCES in example]
        if numbers or sources:
            added = (ROW, SOURCES)
            examples = [{name: value for name, value in example.items() if name not in added} for example in examples]
        batch: dict[str, Any] = dict(self.collator(examples))
        if numbers:
            batch[ROWS] = numbers
        if sources and (sources_BT := sources_of(batch, examples, sources)) is not None:
            batch[SOURCES_BT] = sources_BT
        if "labels" in batch:
            batch[POSITIONS] = trained_positions(batch["labels"])
        if self.values is not None:
            batch[VALUES] = self._values_of(examples, len(batch[POSITIONS]))
        return batch

    def _values_of(self, examples: list[dict[str, Any]], trained: int) -> dict[str, Tensor]:
        assert self.values is not None
        values = dict(self.values(examples))
        for value in values.values():
            if len(value) != trained:
                what = f"the batch trains {trained} tokens, but its examples have values of {len(value)}"
                raise RunError(Problem(what, "the collator", "use one that trains the tokens of its examples"))
        return values

    def __reduce__(self) -> tuple[Any, ...]:
        """In a data worker, the user's modules are found before the collator is loaded, which may be one of theirs."""
        return _with_positions, (finders(), self.collator, self.values)


def _with_positions(_: list[DirectoryFinder], collator: Collator, values: TokenValues | None) -> WithPositions:
    return WithPositions(collator, values)


@dataclass(frozen=True)
class Batch:
    """A batch in the form that the training step needs.

    Attributes:
        inputs: arguments of the model's forward.
        targets: the trained tokens.
        fraction: part of the collator's batch, if that was split; 0 for a row that fills in; else 1.
        sources_K: the number of the source of each trained token; None if it is not known.
        values: of the trained tokens, by name; empty if the loss needs none.
    """

    inputs: dict[str, Any]
    targets: Targets
    fraction: float
    sources_K: Tensor | None = None
    values: Mapping[str, Tensor] = field(default_factory=dict)

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
        inputs.pop(ROW_SHARES, None)
        values = inputs.pop(VALUES, {})
        fraction, sources_BT = inputs.pop(FRACTION, 1.0), inputs.pop(SOURCES_BT, None)
        of_targets = ("loss_weights", POSITIONS, "row_lengths")
        targets = Targets.of(inputs.pop("labels"), *(inputs.pop(name, None) for name in of_targets))
        sources_K = None if sources_BT is None else sources_BT.flatten()[targets.positions_K + 1]
        return cls(inputs, targets, fraction, sources_K, values)

    @property
    def tokens(self) -> int | Tensor:
        """The number of tokens without padding; padding inside packed rows counts, and a row that fills in does not."""
        if not self.fraction:
            return 0
        mask = self.inputs.get("attention_mask")
        rows, columns = self.targets.shape
        return rows * columns if mask is None else mask.sum()

    def by_row(self, values_K: Tensor) -> Tensor:
        """The sum over the trained tokens of each example."""
        lengths_R = self.targets.row_lengths
        rows = self.targets.shape[0] if lengths_R is None else len(lengths_R)
        row_K = self.targets.rows.to(values_K.device)
        return values_K.new_zeros(rows).index_add(0, row_K, values_K)


def sources_of(
    batch: Mapping[str, Any], examples: Sequence[Mapping[str, Any]], sources: Sequence[Any]
) -> Tensor | None:
    """The number of the source of each token of a batch (int16, ``[B, T]``), -1 for padding.

    None if an example has tokens of several sources, and the collator has moved its tokens.

    Args:
        batch: of the collator.
        examples: that it was made of.
        sources: the numbers of the sources of the tokens of each.
    """
    import numpy as np

    ids_BT = np.asarray(batch["input_ids"])
    found_BT = np.full(ids_BT.shape, -1, np.int16)
    lengths = [len(source_T) for source_T in sources]
    together = "row_lengths" in batch
    starts = np.cumsum([0, *lengths]) if together else [0] * len(lengths)
    for row, (example, source_T) in enumerate(zip(examples, sources, strict=True)):
        at, first = (0 if together else row), starts[row]
        if not together and len(source_T) and (source_T == source_T[0]).all():
            found_BT[at] = source_T[0]  # also if the collator moves tokens, or adds some
            continue
        here = slice(first, first + len(source_T))
        if not np.array_equal(ids_BT[at, here], example["input_ids"]):
            return None
        found_BT[at, here] = source_T
    return torch.from_numpy(found_BT)


def window_weight(batches: Iterable[dict[str, Any]], device: torch.device) -> Tensor:
    """The sum of the weights of the trained tokens of an accumulation window (a scalar)."""
    total = torch.zeros((), device=device)
    for batch in batches:
        targets = Batch.of(batch).targets
        total = total + (len(targets.tokens_K) if targets.weights_K is None else targets.weights_K.sum().to(device))
    return total


def rows_apart(value_1S: Tensor, lengths: Sequence[int], fill: int) -> Tensor:
    """A tensor of a padding-free batch with one row for each example (``[R, T]``), filled up on the right."""
    return pad_sequence(list(value_1S[0].split(list(lengths))), batch_first=True, padding_value=fill)


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
    values, trained_R1 = inputs.get(VALUES, {}), _trained_borders(inputs) if VALUES in inputs else []
    inputs = {name: value for name, value in inputs.items() if name not in (POSITIONS, VALUES)}
    split = _columns if "row_lengths" in inputs else _rows
    fraction = 1 / -(-rows // size)
    for low in range(0, rows, size):
        at = slice(low, min(low + size, rows))
        part = {**split(inputs, at), FRACTION: fraction}
        if values:
            of_part = slice(trained_R1[at.start], trained_R1[at.stop])
            part[VALUES] = {name: value[of_part] for name, value in values.items()}
        yield part


def _trained_borders(inputs: dict[str, Any]) -> list[int]:
    """The number of trained tokens before each example, and after the last one."""
    batch = Batch.of(inputs)
    trained_R = batch.by_row(torch.ones_like(batch.targets.positions_K))
    return [0, *trained_R.cumsum(0).tolist()]


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
