"""Adapters of the peft library, merged into the weights of their base model."""

from __future__ import annotations

import warnings
from typing import Any

from sftkit.api import ConfigError, Problem, base_model


def merged(model: Any, name: str) -> Any:
    """The base model with its adapter merged into its weights. Changes the model.

    Tied embeddings stay tied if the adapter changes both in the same way. Otherwise they are untied, and so is the
    configuration: the loader would else overwrite one of them with the other.

    Args:
        model: a `peft.PeftModel`, not quantized.
        name: the adapter's directory, for errors.

    Raises:
        ConfigError: if the adapter cannot be merged.
    """
    kind = model.active_peft_config.peft_type.value
    fix = "export it without --merge; it is loaded with peft"
    if not hasattr(model.base_model, "merge_and_unload"):
        raise ConfigError(Problem(f"an adapter of the method {kind} cannot be merged into the weights", name, fix))
    base = base_model(model)
    tied = base.config.get_text_config().tie_word_embeddings
    if tied:
        _separate(model, base)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Input and output embeddings")  # see below
            plain = model.merge_and_unload(safe_merge=True)
    except (NotImplementedError, ValueError, AttributeError, TypeError) as error:
        what = f"peft cannot merge this adapter of the method {kind}: {' '.join(str(error).split())}"
        raise ConfigError(Problem(what, name, fix)) from error
    plain.requires_grad_(False)
    if hasattr(plain, "peft_config"):
        del plain.peft_config  # which says that there is an adapter
    if tied:
        _tie_if_equal(plain)
    return plain


def _separate(model: Any, base: Any) -> None:
    """Give the output head a copy of the weights that it shares, so that they are not merged twice into one."""
    import torch

    shared = _innermost(base.get_input_embeddings()).weight
    owners = [module for module in model.modules() if module._parameters.get("weight") is shared]
    for module in owners[1:]:
        module.weight = torch.nn.Parameter(shared.detach().clone(), requires_grad=False)


def _innermost(module: Any) -> Any:
    """The layer inside of the wrappers of peft."""
    while True:
        inner = getattr(module, "original_module", None)
        inner = getattr(module, "base_layer", None) if inner is None else inner
        if inner is None:
            return module
        module = inner


def _tie_if_equal(model: Any) -> None:
    import torch

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    equal = torch.equal(embedding.weight, head.weight)
    if equal:
        head.weight = embedding.weight
    else:
        model.all_tied_weights_keys = {}  # only one of them would be saved
    for config in {id(config): config for config in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = equal
