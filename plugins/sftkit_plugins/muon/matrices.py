"""The weights that Muon updates."""

from __future__ import annotations

from typing import Any

from sftkit.api import base_model


def matrix_names(model: Any) -> set[str]:
    """The trained weights with two dimensions, but those of embeddings and of the output head.

    The factors of LoRA are among them, except for those of embeddings and head. Experts whose weights are stacked in
    three dimensions are not.
    """
    from torch import nn

    causal = base_model(model)
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    tables += [module for module in (causal.get_input_embeddings(), causal.get_output_embeddings()) if module]
    excluded = {id(weight) for module in tables for weight in module.parameters()}
    return {
        name
        for name, weight in model.named_parameters()
        if weight.requires_grad and weight.ndim == 2 and id(weight) not in excluded
    }
