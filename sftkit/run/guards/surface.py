"""What a plugin can attach to a model or replace in it: hooks, forwards, modules, and which weights are trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sftkit.run.guards.weights import listed

#: The registries of hooks of a module, and of all modules.
_OF_MODULE = {
    "_forward_hooks": "a forward hook",
    "_forward_pre_hooks": "a forward pre-hook",
    "_backward_hooks": "a backward hook",
    "_backward_pre_hooks": "a backward pre-hook",
}
_OF_ALL = {
    "_global_forward_hooks": "a forward hook",
    "_global_forward_pre_hooks": "a forward pre-hook",
    "_global_backward_hooks": "a backward hook",
    "_global_backward_pre_hooks": "a backward pre-hook",
}
_OF_WEIGHT = {"_backward_hooks": "a hook on the gradient", "_post_accumulate_grad_hooks": "a hook on the gradient"}
#: Attributes by which a module computes something else.
_CALLS = {"forward": "another forward", "_compiled_call_impl": "a compiled forward"}
#: The module of transformers whose hooks collect router logits and hidden states, once a call has asked for these.
_CAPTURING = "transformers.utils.output_capturing"

Key = tuple[str, str, int]
"""What, where, and which one of several hooks."""
Surface = dict[Key, Any]


def surface_of(model: Any) -> Surface:
    """The hooks, forwards and modules of a model and its classes, and which weights are trained, as they are now."""
    return dict(_parts(model))


def _parts(model: Any) -> Iterator[tuple[Key, Any]]:
    from torch.nn.modules import module as torch_module

    for attribute, what in _OF_ALL.items():
        for number in getattr(torch_module, attribute):
            yield (what, "all modules", number), True
    classes = set()
    for name, module in model.named_modules(remove_duplicate=False):
        where = name or "the model"
        yield ("another module", where, 0), module
        for attribute, what in _OF_MODULE.items():
            for number, hook in getattr(module, attribute).items():
                if getattr(hook, "__module__", "") != _CAPTURING:
                    yield (what, where, number), True
        for attribute, what in _CALLS.items():
            value = vars(module).get(attribute)
            if value is not None and not _is_own(module, attribute, value):
                yield (what, where, 0), value
        classes.add(type(module))
    for cls in classes:
        yield ("another forward", f"class {cls.__name__}", id(cls)), cls.forward
    for name, weight in model.named_parameters(remove_duplicate=False):
        yield ("another requires_grad", name, 0), weight.requires_grad
        for attribute, what in _OF_WEIGHT.items():
            for number in getattr(weight, attribute, None) or ():
                yield (what, name, number), True


def _is_own(module: Any, attribute: str, value: Any) -> bool:
    """Whether an attribute is the method of the class, bound to the module."""
    own = getattr(type(module), attribute, None)
    return getattr(value, "__func__", None) is own is not None and value.__self__ is module


def differing(one: Surface, other: Surface) -> set[Key]:
    """The keys whose values differ; equal bound methods are the same."""
    return {key for key in one.keys() | other.keys() if one.get(key) != other.get(key)}


def described(keys: set[Key], now: Surface) -> list[str]:
    """What is left or missing, for people.

    Args:
        keys: those that differ from before.
        now: as it is.
    """
    found: dict[str, list[str]] = {}
    for key in sorted(keys):
        found.setdefault(f"{'leaves' if key in now else 'removes'} {key[0]}", []).append(key[1])
    return [f"{what} on {listed(places)}" for what, places in found.items()]
