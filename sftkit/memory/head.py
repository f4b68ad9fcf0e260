# ruff: noqa: N806 (suffixes are shapes)
"""The loss of a step on fake tensors, computed by what computes it in training.

Legend: B rows, T positions, N = B * T, K trained positions, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sftkit.data.columns import IGNORE
from sftkit.training.loss import Head, HeadLoss, summed_loss

#: Keys of a batch that say what is trained; the model does not see them.
TARGETS = ("labels", "loss_weights", "row_lengths")


def trained_tokens(labels: Tensor) -> int:
    """How many positions of a batch the head meets."""
    return max(int((labels[:, 1:] != IGNORE).sum()), 1)


def step_loss(model: Any, inputs: Mapping[str, Any], trained: int, loss: HeadLoss, counted: Any) -> Tensor:
    """The summed loss of ``trained`` positions, the model's logits in full only where it has no output embedding.

    Args:
        model: the model, bare or with adapters.
        inputs: the batch, as fake tensors.
        trained: how many positions are trained; which ones makes no difference to memory.
        loss: what is computed of their logits.
        counted: is told in ``kind`` what the head makes.
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    module = causal.get_output_embeddings()
    columns = inputs["labels"].shape[1]
    options = {name: value for name, value in inputs.items() if name not in TARGETS}
    device = inputs["labels"].device
    at_K, targets_K = (torch.zeros(trained, dtype=torch.long, device=device) for _ in range(2))
    if module is None:
        logits_NV = model(**options, use_cache=False)["logits"][:, -columns:].flatten(0, 1)
        head = Head(logits_NV.shape[-1], lambda logits: logits)
        return summed_loss(loss, logits_NV.index_select(0, at_K), head, targets_K)[0]
    found: list[Tensor] = []
    own, forward = "forward" in vars(module), module.forward

    def answer(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        before, counted.kind = counted.kind, "head"
        hidden_KD = hidden[:, -columns:].flatten(0, 1).index_select(0, at_K)
        plain = type(module) is nn.Linear and not own
        weights = (module.weight, module.bias) if plain else (None, None)
        head = Head(causal.get_input_embeddings().weight.shape[0], forward, *weights)
        found.append(summed_loss(loss, hidden_KD, head, targets_K)[0])
        counted.kind = before
        return hidden.new_zeros(1, 1, 1)

    module.forward = answer
    try:
        model(**options, use_cache=False)
    finally:
        if own:
            module.forward = forward
        else:
            del module.forward
    return found[0]
