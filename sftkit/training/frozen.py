# ruff: noqa: N803, N806, N815 (suffixes are shapes)
"""A model that is not trained, called on the batches of a training: its logits, a chunk of trained tokens at a time.

Legend: N all positions, R examples of a padding-free batch, T tokens of the longest, K trained positions, k tokens of a
chunk, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from sftkit.training.batches import CUMULATIVE, rows_apart
from sftkit.training.contract import ROW_LENGTHS
from sftkit.training.head import LossHead
from sftkit.training.logits import Post
from sftkit.training.loss import HeadLoss, LossResult, OutputHead, logits_of
from sftkit.training.targets import Targets

#: Where documents of a padding-free batch begin and end; of rows, positions say it.
BORDERS = (ROW_LENGTHS, *CUMULATIVE, "max_length_q", "max_length_k", "seq_idx")


class FrozenModel:
    """A causal language model without gradients. It computes in evaluation mode and in its own type, outside autocast.

    It gets each example of a padding-free batch as a row, so its attention need not keep them apart.

    Args:
        model: the model, bare or with adapters, on its device; none of its weights has a gradient afterwards.
        vocabulary: the number of logits to return of each token; those of further rows of the head are left out.

    Raises:
        ValueError: if the head has fewer rows.
    """

    def __init__(self, model: Any, vocabulary: int) -> None:
        self.model, self.vocabulary = model.requires_grad_(False).eval(), vocabulary
        rows = model.config.get_text_config().vocab_size
        if rows < vocabulary:
            raise ValueError(f"the output head has {rows} rows for {vocabulary} tokens")
        self._head = _Head(model, _States())

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Any], targets: Targets) -> FrozenStates:
        """Run the model's body on a batch.

        Args:
            inputs: arguments of the forward, on any device.
            targets: the trained tokens.
        """
        weight = next(self.model.parameters())
        device, head = weight.device, self._head
        if isinstance(weight, FakeTensor):
            head = _Head(self.model, _States())  # what is found out without values holds for this call alone
        if (lengths_R := targets.row_lengths) is not None:
            inputs = examples_apart({**inputs, ROW_LENGTHS: lengths_R})
            columns = inputs["input_ids"].shape[1]
            targets = replace(targets, positions_K=_places(targets, columns), shape=(len(lengths_R), columns))
        moved = {name: value.to(device) if torch.is_tensor(value) else value for name, value in inputs.items()}
        with torch.autocast(device.type, enabled=False), head.installed():
            result = head.ask(self.model, moved, targets)[1]
        assert isinstance(result, _Result)
        return FrozenStates(result.inputs_KD, result.head, self.vocabulary)


@dataclass(frozen=True)
class FrozenStates:
    """The last hidden states of a frozen model at the trained positions of a batch.

    Attributes:
        hidden_KD: the hidden states.
        head: computes their logits.
        vocabulary: the number of logits of a token.
    """

    hidden_KD: Tensor
    head: OutputHead
    vocabulary: int

    @torch.no_grad()
    def logits(self, at: slice) -> Tensor:
        """The logits (float32, ``[k, V]``, on the model's device) that predict some of the trained tokens."""
        with torch.autocast(self.hidden_KD.device.type, enabled=False):
            return logits_of(self.hidden_KD[at], self.head, False)[1][:, : self.vocabulary].float()


def examples_apart(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A padding-free batch as a `FrozenModel` gets it: with one row for each example, padded on the right.

    Any other batch is returned unchanged.

    Args:
        batch: of a collator, with or without labels.
    """
    if ROW_LENGTHS not in batch:
        return dict(batch)
    lengths, shape = batch[ROW_LENGTHS].tolist(), batch["input_ids"].shape
    made: dict[str, Any] = {}
    for name, value in batch.items():
        if name not in BORDERS:
            made[name] = rows_apart(value, lengths, 0) if torch.is_tensor(value) and value.shape == shape else value
    ids_RT, positions_RT = made["input_ids"], made.get("position_ids")
    columns_T = torch.arange(ids_RT.shape[1], device=ids_RT.device)
    there_RT = columns_T < torch.tensor(lengths, device=ids_RT.device)[:, None]
    if positions_RT is None or bool((there_RT <= (positions_RT == columns_T)).all()):  # each is one document
        made.pop("position_ids", None)
        made["attention_mask"] = there_RT.long()
    return made


def _places(targets: Targets, columns: int) -> Tensor:
    """The positions of the trained tokens (``[K]``) in rows of one example each."""
    assert targets.row_lengths is not None
    lengths_R, row_K = targets.row_lengths.to(targets.positions_K.device), targets.rows
    starts_R = lengths_R.cumsum(0) - lengths_R
    return targets.positions_K - starts_R[row_K] + row_K * columns


@dataclass
class _Result(LossResult):
    inputs_KD: Any = None
    head: Any = None


class _States(HeadLoss):
    """No loss: keeps what it is computed from."""

    def run(
        self,
        hidden_KD: Tensor,
        head: OutputHead,
        targets_K: Tensor,
        weights_K: Tensor | None,
        trained: Sequence[Tensor] | None,
    ) -> LossResult:
        """Zeros, with the hidden states and the head."""
        return _Result(hidden_KD.new_zeros(len(hidden_KD)), {}, inputs_KD=hidden_KD, head=head)


class _Head(LossHead):
    """A head that adds nothing to losses, and also works on tensors without values."""

    def _find_auxiliary(self, model: Any) -> float | None:
        return None

    def _find_post(self, model: Any) -> tuple[int, Post | None]:
        module: Any = self._intercept.module
        weight = next(module.parameters())
        if isinstance(weight, FakeTensor):
            return len(weight), None
        return super()._find_post(model)
