"""Liger's kernels on a model for a while: what they replace is written down, and put back at the end."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

from sftkit.api import ConfigError, Problem, base_model

#: In a space before it had the key.
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
        """The name has its old value again, or is gone as it was."""
        if self.old is MISSING:
            self.space.names.pop(self.key, None)
        else:
            self.space.names[self.key] = self.old


@contextmanager
def patched(model: Any, kernels: Iterable[str], required: Iterable[str] = ()) -> Iterator[list[str]]:
    """Holds liger's kernels on a model. Changes the model and modules of transformers; the exit undoes all of it.

    Liger replaces methods of the model's own modules, and names in the modules of transformers. Of those only the
    functions, as ``apply_rotary_pos_emb``, are needed by a model that is made already; the classes are put back at
    once, so that a model made meanwhile is a plain one.

    Args:
        model: a transformers or peft model.
        kernels: names of kernels that the model's type has.
        required: those among them that were asked for by name.

    Yields:
        The kernels that replaced something.

    Raises:
        ConfigError: if a kernel computes something else than the model does, would hide an adapter, or is required and
            replaces nothing.
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
                what = f"there is nothing in this {base.config.model_type} that the kernel could replace"
                raise ConfigError(Problem(what, f"plugin liger, option {kernel}", "drop it"))
        yield used


def _undo(changes: list[Change]) -> None:
    for change in reversed(changes):
        change.undo()


def liger_function(model_type: str) -> Callable[..., None]:
    """Liger's function that puts kernels on models of a type, with all of them off that are not named.

    Raises:
        ConfigError: if it does not work with the installed transformers.
    """
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    apply = MODEL_TYPE_TO_APPLY_LIGER_FN[model_type]
    parameters = inspect.signature(apply).parameters
    off = {name: False for name, parameter in parameters.items() if isinstance(parameter.default, bool)}
    try:
        apply(**off)  # imports the modules that it writes into, and writes nothing
    except (ImportError, AttributeError) as error:
        what = f"this liger-kernel does not work with {model_type} of this transformers: {' '.join(str(error).split())}"
        raise ConfigError(Problem(what, "plugin liger", "install another version of it, or drop liger")) from error
    return functools.partial(apply, **off)


def _apply(model: Any, kernel: str, changes: list[Change]) -> None:
    """Applies one kernel, and adds what it changes to ``changes``, also where it fails halfway."""
    apply = liger_function(model.config.model_type)
    before = [(space, _items(space)) for space in _spaces(model)]
    try:
        apply(model=model, **{kernel: True})
    except (AttributeError, TypeError, ValueError) as error:
        what = f"liger-kernel cannot put {kernel} on this {type(model).__name__}: {' '.join(str(error).split())}"
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
    return dict(dict.items(space.names))  # ACT2FN's own items() would make instances of its classes


def _differences(before: list[tuple[Space, dict[str, Any]]]) -> Iterator[Change]:
    for space, old in before:
        for key, value in _items(space).items():
            if old.get(key, MISSING) is not value:
                yield Change(space, key, old.get(key, MISSING))


def _check(model: Any, kernel: str, changes: list[Change]) -> None:
    """Refuses a kernel that hides an adapter, or that has another activation function than the model.

    Raises:
        ConfigError: in both cases.
    """
    where, fix = f"plugin liger, option {kernel}", f"set {kernel}: false"
    layers = [change.space.owner for change in changes if change.key == "forward"]
    for layer in layers:
        if _is_adapter(layer):
            what = f"the kernel would go round the adapter on {type(layer.get_base_layer()).__name__}"
            raise ConfigError(Problem(what, where, fix))
        if kernel in ("swiglu", "geglu") and not _has_activation(layer, kernel):
            act = getattr(model.config, "hidden_act", None) or getattr(model.config, "hidden_activation", None)
            what = f"the kernel computes {kernel}, and this model has the activation function {act!r}"
            raise ConfigError(Problem(what, where, fix))


def _is_adapter(layer: Any) -> bool:
    tuners = sys.modules.get("peft.tuners.tuners_utils")
    return tuners is not None and isinstance(layer, tuners.BaseTunerLayer)


def _has_activation(layer: Any, kernel: str) -> bool:
    """Whether a layer's activation function gives what the kernel's does; one without a function of its own passes."""
    import torch
    from torch.nn.functional import gelu, silu

    act = next((act for name in ("act_fn", "activation_fn", "act") if (act := getattr(layer, name, None))), None)
    x = torch.linspace(-4, 4, 33)
    return act is None or torch.allclose(act(x), silu(x) if kernel == "swiglu" else gelu(x, approximate="tanh"))
