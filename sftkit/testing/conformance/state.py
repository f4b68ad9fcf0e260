"""The state of a model, which a plugin must leave or restore: tensors bit by bit, hooks, forwards and settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

#: Attributes of a module with its hooks.
HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
#: Attributes of a module, or of its class, that change what it computes.
CALLED = ("forward", "_call_impl", "_compiled_call_impl", "__call__", "_gradient_checkpointing_func")


@dataclass(frozen=True)
class TensorState:
    """A parameter or a buffer: which tensor it is, and its bits."""

    identity: int
    bits: Any
    dtype: Any
    shape: tuple[int, ...]
    requires_grad: bool


@dataclass(frozen=True)
class ModelState:
    """What a model is.

    Attributes:
        tensors: parameters and buffers by name; tied ones have all their names.
        modes: whether each module is in training mode.
        modules: of each module its class, hooks and replaced methods.
        settings: the model's configuration, and torch's settings of the process.
    """

    tensors: dict[str, TensorState]
    modes: dict[str, bool]
    modules: dict[str, dict[str, Any]]
    settings: dict[str, Any]

    @classmethod
    def of(cls, model: Any) -> ModelState:
        """The state of a model now."""
        named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        modules = dict(model.named_modules(remove_duplicate=False))
        return cls(
            {name: _tensor(tensor) for name, tensor in named},
            {name: module.training for name, module in modules.items()},
            {name: _module(module) for name, module in modules.items()},
            _settings(model),
        )

    def tensor_changes(self, now: ModelState) -> Iterator[str]:
        """How the tensors and the modes of a model have changed since."""
        for name in self.tensors.keys() - now.tensors.keys():
            yield f"{name} is gone"
        for name in now.tensors.keys() - self.tensors.keys():
            yield f"{name} is new"
        for name, before in self.tensors.items():
            if (after := now.tensors.get(name)) is not None:
                yield from _difference(name, before, after)
        modes = [name for name, mode in self.modes.items() if now.modes.get(name, mode) != mode]
        if modes:
            yield f"the training mode of {_some(modes)} changed"

    def changes(self, now: ModelState) -> Iterator[str]:
        """How anything has changed since."""
        yield from self.tensor_changes(now)
        for name in self.modules.keys() ^ now.modules.keys():
            yield f"module {name} is {'gone' if name in self.modules else 'new'}"
        for name, before in self.modules.items():
            after = now.modules.get(name, before)
            for what in before.keys() | after.keys():
                if before.get(what) != after.get(what):
                    yield f"{what} of {name or 'the model'} changed"
        for what, setting in self.settings.items():
            if now.settings.get(what) != setting:
                yield f"{what} was {setting!r} and is {now.settings.get(what)!r}"


def _tensor(tensor: Any) -> TensorState:
    import torch

    bits = tensor.detach().contiguous().cpu().clone().view(-1).view(torch.uint8)
    return TensorState(id(tensor), bits, tensor.dtype, tuple(tensor.shape), tensor.requires_grad)


def _difference(name: str, before: TensorState, after: TensorState) -> Iterator[str]:
    import torch

    if before.shape != after.shape:
        yield f"the shape of {name} was {before.shape} and is {after.shape}"
    elif before.dtype != after.dtype:
        yield f"{name} was {before.dtype} and is {after.dtype}"
    elif not torch.equal(before.bits, after.bits):
        yield f"the values of {name} changed"
    elif before.identity != after.identity:
        yield f"{name} is another tensor"
    if before.requires_grad != after.requires_grad:
        yield f"requires_grad of {name} was {before.requires_grad} and is {after.requires_grad}"


def _module(module: Any) -> dict[str, Any]:
    kind = type(module)
    found: dict[str, Any] = {"the class": kind}
    for name in HOOKS:
        if hooks := getattr(module, name, None):
            found[f"the hooks ({name})"] = [(key, id(hook)) for key, hook in hooks.items()]
    for name in CALLED:
        if name in vars(module) and vars(module)[name] is not None:
            found[name] = vars(module)[name]
        if hasattr(kind, name):
            found[f"{name} of the class"] = getattr(kind, name)
    if getattr(module, "gradient_checkpointing", False):
        found["gradient_checkpointing"] = True
    return found


def _settings(model: Any) -> dict[str, Any]:
    import torch

    settings = {f"config.{key}": value for key, value in model.config.to_dict().items()}
    settings["config._attn_implementation"] = getattr(model.config, "_attn_implementation", None)
    settings["torch.is_grad_enabled()"] = torch.is_grad_enabled()
    settings["torch.get_default_dtype()"] = torch.get_default_dtype()
    for kind in ("flash", "mem_efficient", "math"):
        settings[f"torch.backends.cuda.{kind}_sdp_enabled()"] = getattr(torch.backends.cuda, f"{kind}_sdp_enabled")()
    return settings


def _some(names: list[str]) -> str:
    shown = ", ".join(name or "the model" for name in names[:3])
    return f"{shown} and {len(names) - 3} more" if len(names) > 3 else shown


def summary(changes: Iterator[str]) -> str:
    """Changes in one line: the first few, and how many there are."""
    found = list(changes)
    more = f", and {len(found) - 3} more changes" if len(found) > 3 else ""
    return "; ".join(found[:3]) + more
