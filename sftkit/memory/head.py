# ruff: noqa: N806 (suffixes are shapes)
"""The loss of a step on fake tensors, computed by what computes it in training.

Legend: B rows, T positions, N = B * T, K trained positions, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sftkit.training.head import Targets
from sftkit.training.loss import Head, HeadLoss, summed_loss


def step_loss(model: Any, inputs: Mapping[str, Any], targets: Targets, loss: HeadLoss, counted: Any) -> Tensor:
    """The summed loss of a batch, with the model's logits in full only where it has no output embedding.

    Args:
        model: the model, bare or with adapters.
        inputs: of its forward, as fake tensors.
        targets: what is trained; how many tokens matters, and not which.
        loss: what is computed of their logits.
        counted: is told in ``kind`` what the head makes.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    module = causal.get_output_embeddings()
    columns, trained, device = targets.shape[1], max(len(targets.tokens_K), 1), inputs["input_ids"].device
    at_K, targets_K = (torch.zeros(trained, dtype=torch.long, device=device) for _ in range(2))
    weights_K = None if targets.weights_K is None else torch.zeros(trained, device=device)
    if module is None:
        logits_NV = model(**inputs)["logits"][:, -columns:].flatten(0, 1)
        head = Head(logits_NV.shape[-1], lambda logits: logits)
        return summed_loss(loss, logits_NV.index_select(0, at_K), head, targets_K, weights_K)[0]
    found: list[Tensor] = []
    own, forward = "forward" in vars(module), module.forward

    def answer(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        before, counted.kind = counted.kind, "head"
        hidden_KD = hidden[:, -columns:].flatten(0, 1).index_select(0, at_K)
        plain = type(module) is nn.Linear and not own
        weights = (module.weight, module.bias) if plain else (None, None)
        head = Head(causal.get_input_embeddings().weight.shape[0], forward, *weights)
        found.append(summed_loss(loss, hidden_KD, head, targets_K, weights_K)[0])
        counted.kind = before
        return hidden.new_zeros(1, 1, 1)

    module.forward = answer
    try:
        model(**inputs)
    finally:
        if own:
            module.forward = forward
        else:
            del module.forward
    return found[0]
