"""Applies liger's kernels to a model temporarily: records what they replace, and restores it at the end."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from sftkit.api import ConfigError, Problem, base_model

#: The old value of a key that did not exist.
MISSING = object()


class Space(NamedTuple):
    """A mapping that liger writes into: a module's attributes, its submodules, or a Python module's globals."""

    owner: Any
    names: dict[str, Any]


class Change(NamedTuple):
    """One name that was replaced."""

    space: Space
    key: str
    old: Any

    def undo(self) -> None:
        """Restores the old value of the name, or removes the name if it did not exist."""
        if self.old is MISSING:
            self.space.names.pop(self.key, None)
        else:
            self.space.names[self.key] = self.old


@contextmanager
def patched(model: Any, kernels: Iterable[str], required: Iterable[str] = ()) -> Iterator[list[str]]:
    """Applies liger's kernels to a model and to modules of transformers, and undoes all changes on exit.

    Liger replaces methods of the model's own modules, and names in the modules of transformers. An
    existing model needs only the functions among those names, such as ``apply_rotary_pos_emb``. Classes are restored at
    once, so that a model created in the meantime is a plain one.

    Args:
        model: a transformers or peft model.
        kernels: names of kernels that liger has for the model type.
        required: the kernels that were requested by name.

    Yields:
        The kernels that replaced something.

    Raises:
        ConfigError: if a kernel computes something different from the model, would bypass an adapter, or is required
            but replaces nothing.
    """
    base = base_model(model)
    used = []
    with ExitStack() as stack:
        for kernel in kernels:
            changes: list[Change] = []
            stack.callback(_undo, changes)
            _apply(base, kernel, changes)
            _check(base, kernel, changes)
            if changes:
                used.append(kernel)
            elif kernel in required:
                what = f"this {base.config.model_type} model has no layer that the kernel could replace"
                raise ConfigError(Problem(what, f"plugin liger, option {kernel}", "remove the option"))
        yield used


def _undo(changes: list[Change]) -> None:
    for change in reversed(changes):
        change.undo()


def liger_function(model_type: str) -> Callable[..., None]:
    """Liger's function that applies kernels to models of a type, with every kernel off unless it is named.

    Raises:
        ConfigError: if the function does not work with the installed transformers.
    """
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    apply = MODEL_TYPE_TO_APPLY_LIGER_FN[model_type]
    parameters = inspect.signature(apply).parameters
    off = {name: False for name, parameter in parameters.items() if isinstance(parameter.default, bool)}
    try:
        apply(**off)  # imports the modules that it would change, but changes nothing
    except (ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())
        what = f"the installed liger-kernel and transformers do not work together for {model_type}: {reason}"
        raise ConfigError(
            Problem(what, "plugin liger", "install another version of liger-kernel, or run without liger")
        ) from error
    return functools.partial(apply, **off)


def _apply(model: Any, kernel: str, changes: list[Change]) -> None:
    """Applies one kernel and records its changes in ``changes``, even if it fails halfway."""
    apply = liger_function(model.config.model_type)
    before = [(space, _items(space)) for space in _spaces(model)]
    try:
        apply(model=model, **{kernel: True})
    except (AttributeError, TypeError, ValueError) as error:
        what = f"liger-kernel cannot apply {kernel} to this {type(model).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(Problem(what, "plugin liger", f"set {kernel}: false")) from error
    finally:
        for change in _differences(before):
            if isinstance(change.old, type):
                change.undo()
            else:
                changes.append(change)


def _spaces(model: Any) -> Iterator[Space]:
    import torch
    from transformers.activations import ACT2FN

    for module in model.modules():
        yield Space(module, vars(module))
        yield Space(module, module._modules)
    for name, module in list(sys.modules.items()):
        if name.startswith("transformers.models.") and ".modeling_" in name:
            yield Space(module, vars(module))
    for place in (torch.nn, torch.nn.functional):
        yield Space(place, vars(place))
    yield Space(ACT2FN, ACT2FN)


def _items(space: Space) -> dict[str, Any]:
    return dict(dict.items(space.names))  # ACT2FN.items() would create instances of its classes


def _differences(before: list[tuple[Space, dict[str, Any]]]) -> Iterator[Change]:
    for space, old in before:
        for key, value in _items(space).items():
            if old.get(key, MISSING) is not value:
                yield Change(space, key, old.get(key, MISSING))


def _check(model: Any, kernel: str, changes: list[Change]) -> None:
    """Refuses a kernel that bypasses an adapter, or whose activation function differs from the model's.

    Raises:
        ConfigError: in both cases.
    """
    where, fix = f"plugin liger, option {kernel}", f"set {kernel}: false"
    layers = [change.space.owner for change in changes if change.key == "forward"]
    for layer in layers:
        if _is_adapter(layer):
            what = f"the kernel would bypass the adapter on {type(layer.get_base_layer()).__name__}"
            raise ConfigError(Problem(what, where, fix))
        if kernel in ("swiglu", "geglu") and not _has_activation(layer, kernel):
            act = getattr(model.config, "hidden_act", None) or getattr(model.config, "hidden_activation", None)
            what = f"the kernel computes {kernel}, but this model has the activation function {act!r}"
            raise ConfigError(Problem(what, where, fix))


def _is_adapter(layer: Any) -> bool:
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    return tuners is not None and isinstance(layer, tuners.BaseTunerLayer)


def _has_activation(layer: Any, kernel: str) -> bool:
    """Whether a layer's activation function equals the kernel's; a layer without an activation function passes."""
    import torch
    from torch.nn.functional import gelu, silu

    act = next((act for name in ("act_fn", "activation_fn", "act") if (act := getattr(layer, name, None))), None)
    x = torch.linspace(-4, 4, 33)
    return act is None or torch.allclose(act(x), silu(x) if kernel == "swiglu" else gelu(x, approximate="tanh"))
