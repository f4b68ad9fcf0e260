# ruff: noqa: N803, N806 (suffixes are shapes)
"""The loss of a step on fake tensors, by the head that computes it in training.

Legend: K trained positions, N all positions, D hidden size.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sftkit.training.head import PROBED, LossHead, Targets
from sftkit.training.loss import HeadLoss, LossResult, OutputHead


class TracedHead(LossHead):
    """The head of training, on tensors that have no values.

    Args:
        model: the model, bare or with adapters.
        loss: what is computed of the trained positions' logits.
        counted: is told in ``kind`` what the head makes.
    """

    def __init__(self, model: Any, loss: HeadLoss, counted: Any) -> None:
        super().__init__(model, loss)
        self._counted = counted

    def step(self, model: Any, inputs: dict[str, Any], targets: Targets) -> Tensor:
        """The summed loss of a batch; how many positions of ``targets`` are trained matters, and not which."""
        device, trained = inputs["input_ids"].device, max(len(targets.tokens_K), 1)
        at_K = torch.zeros(trained, dtype=torch.long, device=device)
        weights_K = None if targets.weights_K is None else torch.zeros(trained, device=device)
        targets = replace(targets, positions_K=at_K, tokens_K=at_K, weights_K=weights_K)
        with self.installed():
            total, _, _ = self.ask(model, inputs, targets)
        return total

    def _losses(self, inputs_ND: Tensor, head: OutputHead, targets: Targets) -> tuple[Tensor, LossResult]:
        before, self._counted.kind = self._counted.kind, "head"
        try:
            return super()._losses(inputs_ND, head, targets)
        finally:
            self._counted.kind = before

    def _is_whole(self, weight: Tensor) -> bool:
        """Any is: tensors without values have a type of their own."""
        return True

    def _find_post(self, model: Any) -> None:
        """Without values, logits that come out of the model as another tensor count as changed."""
        self._vocabulary = self._module.weight.shape[0]
        given: list[Tensor] = []
        seen: list[Any] = []

        def answer(hidden: Tensor) -> Tensor:
            given.append(hidden.new_empty(1, PROBED, self._vocabulary))
            return given[-1]

        hook = None
        if self._base is not None:
            hook = self._base.register_forward_hook(lambda _, __, output: seen.append(type(output)))
        tokens = torch.zeros(1, PROBED, dtype=torch.long, device=self._module.weight.device)
        try:
            with torch.no_grad(), self._answering(answer):
                made = model(input_ids=tokens, use_cache=False)["logits"]
        finally:
            if hook is not None:
                hook.remove()
        if given and seen and made is not given[0]:
            self._base_class, self._post = seen[0], self._replay
