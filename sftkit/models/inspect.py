"""Looking at a model: its layers, its parts, how it is quantized, and what it computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn


def linear_names(model: nn.Module) -> list[str]:
    """The last parts of the names of a model's linear layers, each once, in the model's order."""
    names = (name.rpartition(".")[2] for name, module in model.named_modules() if is_linear(module))
    return list(dict.fromkeys(names))


#: Modules inside a vision tower that lead from it to the language model.
_PROJECTORS = ("merger", "deepstack_merger_list")


Part = Literal["language", "vision", "projector"]


def parts_of(model: Any) -> dict[str, Part]:
    """Which part of a model that sees pictures each of its layers is: vision tower, language model, or between them.

    Args:
        model: a PreTrainedModel without adapters; one that sees no pictures is all language.

    Returns:
        By name, each module that has weights of its own, or nothing inside it.
    """
    names = {id(module): name for name, module in model.named_modules()}
    tower, decoder = (names[id(part)] for part in (model.get_encoder(modality="image"), model.get_decoder()))
    head = model.get_output_embeddings()
    parts: dict[str, Part] = {}
    for name, module in model.named_modules():
        if any(True for _ in module.children()) and not any(True for _ in module.parameters(recurse=False)):
            continue
        if not tower or module is head or _inside(name, decoder):
            parts[name] = "language"
        elif _inside(name, tower):
            below = name.removeprefix(tower).split(".")
            parts[name] = "projector" if any(part in _PROJECTORS for part in below) else "vision"
        else:
            parts[name] = "projector"
    return parts


def _inside(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def base_model(model: Any) -> Any:
    """The transformers model inside one with an adapter; any other model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer, whoever made it."""
    # By name, since quantized layers and GPT-2's Conv1D are no subclass of nn.Linear.
    return "Linear" in type(module).__name__ or type(module).__name__ == "Conv1D"


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Eval mode without gradients; each module's own mode and the random state are put back."""
    import torch

    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
