"""Looking into a model: its layers, its parts, its adapter, and what it computes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from torch import nn

Part = Literal["language", "vision", "projector"]


def has_adapter(model: Any) -> bool:
    """Whether a model carries an adapter."""
    return hasattr(model, "peft_config")  # the attribute by which transformers itself recognises one


def base_model(model: Any) -> Any:
    """The transformers model inside one with an adapter; any other model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def computes_logits(model: Any) -> bool:
    """Whether a model of transformers, with or without an adapter, has output embeddings."""
    found = getattr(model, "get_output_embeddings", None)
    return callable(found) and hasattr(model, "config") and found() is not None


def position_limit(config: Any) -> int | None:
    """The number of tokens of the longest text that a model is made for; None if its configuration names none.

    Args:
        config: the model's configuration.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or {}
    if found is not None and rope.get("rope_type") == "dynamic":  # which is scaled by the length beyond this one
        return round(found * rope["factor"])
    return found


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer of any library."""
    # By name: quantized layers and GPT-2's Conv1D are not subclasses of nn.Linear. A KimiLinearModel is no layer.
    name = type(module).__name__
    return name == "Conv1D" or ("Linear" in name and hasattr(module, "in_features"))


def linear_names(model: nn.Module) -> list[str]:
    """The last components of the names of a model's linear layers, without repeats, in the model's order."""
    names = (name.rpartition(".")[2] for name, module in model.named_modules() if is_linear(module))
    return list(dict.fromkeys(names))


def layer_stacks(model: nn.Module) -> dict[str, nn.ModuleList]:
    """The lists of layers of a model, by name; an image-text model has one for each of its parts."""
    from torch import nn
    from transformers.modeling_layers import GradientCheckpointingLayer

    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and module and isinstance(module[0], GradientCheckpointingLayer)
    }


def parts_of(model: Any, projectors: Collection[str] = ()) -> dict[str, Part]:
    """Which part of an image-text model each of its modules belongs to.

    The vision tower and the language model are those that transformers returns from ``get_encoder`` and
    ``get_decoder``. Whatever lies outside both is the projector.

    Args:
        model: a PreTrainedModel without adapters; all of a model without a vision tower is language.
        projectors: names of modules inside the vision tower that belong to the projector.

    Returns:
        The part by module name, for each module that has parameters of its own or no submodules.
    """
    names = {id(module): name for name, module in model.named_modules()}
    # A model that was made without a vision tower may return None for it.
    tower, decoder = (names.get(id(part), "") for part in (model.get_encoder(modality="image"), model.get_decoder()))
    head = model.get_output_embeddings()
    parts: dict[str, Part] = {}
    for name, module in model.named_modules():
        if any(True for _ in module.children()) and not any(True for _ in module.parameters(recurse=False)):
            continue
        if not tower or module is head or _inside(name, decoder):
            parts[name] = "language"
        elif _inside(name, tower) and not {*name.removeprefix(tower).split(".")} & {*projectors}:
            parts[name] = "vision"
        else:
            parts[name] = "projector"
    return parts


def _inside(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def autocast_type(train: Mapping[str, Any]) -> torch.dtype | None:
    """The dtype of mixed precision as configured in the section ``train``; None without mixed precision."""
    import torch

    return torch.bfloat16 if train.get("bf16") else torch.float16 if train.get("fp16") else None


@contextmanager
def evaluating(model: Any, autocast: torch.dtype | None = None) -> Iterator[None]:
    """Eval mode without gradients; restores each module's mode and the random state at its exit.

    Args:
        model: the model.
        autocast: dtype of mixed precision, which the Trainer turns on only when training starts.
    """
    import torch

    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    mixed = nullcontext() if autocast is None else torch.autocast(device.type, autocast)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad(), mixed:
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
