"""Models without their weights, on the meta device."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sftkit.models.adapters import base_of
from sftkit.models.loading import as_config_error, base_configuration

if TYPE_CHECKING:
    from sftkit.config import RunConfig


def without_weights(model: Any) -> Any:
    """A copy of a loaded model, on the meta device."""
    import torch

    memo: dict[int, Any] = {}
    for value in (*model.parameters(), *model.buffers()):
        made = torch.empty_like(value, device="meta")
        trained = isinstance(value, torch.nn.Parameter)
        memo[id(value)] = torch.nn.Parameter(made, requires_grad=value.requires_grad) if trained else made
    return copy.deepcopy(model, memo)


@contextmanager
def without_data(model: Any) -> Iterator[None]:
    """Inside, each weight of a model is one on the meta device, of the whole shape if it is sharded; nothing is copied.

    Args:
        model: the model; it must not be called inside.
    """
    import torch

    kept = [(module, name, weight) for module in model.modules() for name, weight in module._parameters.items()]
    kept = [(module, name, weight) for module, name, weight in kept if weight is not None]
    made = {
        weight: torch.nn.Parameter(
            torch.empty(weight.shape, dtype=weight.dtype, device="meta"), requires_grad=weight.requires_grad
        )
        for _, _, weight in kept
    }
    try:
        for module, name, weight in kept:
            module._parameters[name] = made[weight]
        yield
    finally:
        for module, name, weight in kept:
            module._parameters[name] = weight


def copy_of(model: Any, weights: bool = True) -> Any:
    """A copy of a loaded model, with or without its weights; None for None."""
    return copy.deepcopy(model) if weights or model is None else without_weights(model)


def base_without_weights(config: RunConfig, options: Mapping[str, Any], images: bool) -> Any:
    """The model of the section ``model`` as it is built from its configuration, which is read from here or the hub.

    Args:
        config: the run as resolved.
        options: arguments of ``from_pretrained``; those that are not of the configuration are ignored.
        images: whether the run has a processor, so that the model takes more than text.

    Raises:
        ConfigError: if the configuration cannot be read, or no model class takes it.
    """
    import torch

    section = config.model
    architecture, _ = base_configuration(config, options)
    with as_config_error("model", name=base_of(section.name)[0]), torch.device("meta"):
        wanted = architecture.dtype or "float32" if section.dtype == "auto" else section.dtype
        dtype = getattr(torch, wanted) if isinstance(wanted, str) else wanted
        made = auto_class(images).from_config(architecture, dtype=dtype, trust_remote_code=section.trust_remote_code)
        return made.eval()


def auto_class(images: bool) -> Any:
    """The class of transformers that makes a run's model from its configuration.

    Args:
        images: whether the run has a processor.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

    return AutoModelForMultimodalLM if images else AutoModelForCausalLM
