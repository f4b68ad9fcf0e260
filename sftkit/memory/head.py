# ruff: noqa: N803, N806 (suffixes are shapes)
"""The loss of a step on fake tensors, by the head that computes it in training.

Legend: K trained positions, N all positions, D hidden size.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sftkit.training.attributes import replaced
from sftkit.training.head import LossHead
from sftkit.training.logits import PROBED, Post, probe, replay
from sftkit.training.loss import HeadLoss, LossResult, OutputHead
from sftkit.training.targets import Targets


class TracedHead(LossHead):
    """The head of the training, on tensors without values.

    Args:
        model: the model, bare or with adapters.
        loss: computed from the logits of the trained positions.
        counted: counts the bytes; its ``kind`` is ``head`` while the loss is computed.
    """

    def __init__(self, model: Any, loss: HeadLoss, counted: Any) -> None:
        super().__init__(model, loss)
        self._counted = counted

    def step(self, model: Any, inputs: dict[str, Any], targets: Targets) -> Tensor:
        """The summed loss of a batch; it depends on the number of trained positions, not on their places."""
        device, trained = inputs["input_ids"].device, max(len(targets.tokens_K), 1)
        at_K = torch.zeros(trained, dtype=torch.long, device=device)
        weights_K = None if targets.weights_K is None else torch.zeros(trained, device=device)
        targets = replace(targets, positions_K=at_K, tokens_K=at_K, weights_K=weights_K)
        with self.installed():
            return self.ask(model, inputs, targets)[0]

    def _losses(
        self, loss: HeadLoss, inputs_ND: Tensor, head: OutputHead, targets: Targets
    ) -> tuple[Tensor, LossResult]:
        with replaced(self._counted, "kind", "head"):
            return super()._losses(loss, inputs_ND, head, targets)

    def _is_whole(self, weight: Tensor) -> bool:
        """Every weight is: fake tensors have another type than real ones."""
        return True

    def _find_auxiliary(self, model: Any) -> float | None:
        """None: without values, a loss shows no coefficient, and one number changes no memory."""
        return None

    def _find_post(self, model: Any) -> tuple[int, Post | None]:
        """Without values, logits count as changed if the model returns another tensor than that of its head."""
        module: Any = self._intercept.module
        vocabulary: int = module.weight.shape[0]
        with torch.no_grad():
            found = probe(self._intercept, model, lambda hidden: hidden.new_empty(1, PROBED, vocabulary))
        changed = found.chosen is not None and found.returned is not found.chosen
        return vocabulary, replay(self._intercept, found.decoder_output) if changed and found.decoder_output else None
