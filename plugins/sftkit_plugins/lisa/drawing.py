"""Which layers are trained, and the callback that draws others."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from sftkit.api import ConfigError, Problem, layer_stacks
from sftkit_plugins.lisa import WHERE

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("sftkit")


def drawn(seed: int, period: int, layers: int, of: int) -> list[int]:
    """The layers that are trained in a period: the same for the same arguments, in every process and version.

    Args:
        seed: of the run.
        period: the number of the period of ``interval`` steps, from 0.
        layers: how many are drawn.
        of: how many there are.

    Returns:
        Their numbers, ascending.
    """

    def order(layer: int) -> bytes:
        return hashlib.sha256(f"{seed}/{period}/{layer}".encode()).digest()

    return sorted(sorted(range(of), key=order)[:layers])


def layer_weights(model: Any, layers: int) -> list[list[Tensor]]:
    """The trained weights of each layer.

    Raises:
        ConfigError: if there is not exactly one stack of layers with trained weights, or it is not larger.
    """
    found: dict[str, list[list[Tensor]]] = {
        name: [[weight for weight in layer.parameters() if weight.requires_grad] for layer in stack]
        for name, stack in layer_stacks(model).items()
    }
    found = {name: stack for name, stack in found.items() if any(stack)}
    if len(found) != 1:
        what = f"the model has {len(found)} stacks of layers that are trained{': ' * bool(found)}{', '.join(found)}"
        fix = "freeze all but one" if found else "drop the plugin"
        raise ConfigError(Problem(what, WHERE, fix))
    (weights,) = found.values()
    if len(weights) <= layers:
        what = f"{layers} layers are to be trained at a time, and the model has {len(weights)}"
        fix = f"use at most {len(weights) - 1}, or drop the plugin"
        raise ConfigError(Problem(what, f"{WHERE}, option layers", fix, ("plugins", "lisa", "layers")))
    return weights


@contextmanager
def only_largest(model: Any, layers: int) -> Iterator[None]:
    """Inside, only the layers with the most weights are trained."""
    weights = layer_weights(model, layers)
    frozen = sorted(weights, key=lambda each: sum(weight.numel() for weight in each))[:-layers]
    try:
        for weight in (weight for each in frozen for weight in each):
            weight.requires_grad_(False)
        yield
    finally:
        for weight in (weight for each in frozen for weight in each):
            weight.requires_grad_(True)


class DrawLayers(TrainerCallback):  # type: ignore[misc]
    """Before the first step of each period, trains the drawn layers and freezes the others.

    What is drawn follows from the seed and the step, so that a resumed run continues exactly. After the training, all
    are trained as before.

    Args:
        layers: how many are trained at a time.
        interval: optimizer steps of a period.
        seed: of the run.
        keep_state: whether the optimizer keeps the state of a layer that is frozen.
    """

    def __init__(self, layers: int, interval: int, seed: int, keep_state: bool) -> None:
        self._layers, self._interval, self._seed, self._keep = layers, interval, seed, keep_state
        self._weights: list[list[Tensor]] = []
        self._period = -1

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
        """Find the layers."""
        self._weights, self._period = layer_weights(model, self._layers), -1
        sizes = [sum(weight.numel() for weight in each) for each in self._weights]
        trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        at_once = trained - sum(sorted(sizes)[: -self._layers])
        logger.info(
            "lisa: %d of %d layers are trained at a time, at most %s of %s parameters (%.1f %%); others every %d steps",
            self._layers,
            len(sizes),
            f"{at_once:,}",
            f"{trained:,}",
            100 * at_once / trained,
            self._interval,
        )

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **more: Any) -> None:
        """Freeze all layers but those of the period, and drop what the optimizer knows of them."""
        period = state.global_step // self._interval
        if period == self._period:
            return
        self._period = period
        numbers = drawn(self._seed, period, self._layers, len(self._weights))
        logger.debug("lisa: step %d: layers %s", state.global_step + 1, ", ".join(map(str, numbers)))
        chosen = {id(weight) for number in numbers for weight in self._weights[number]}
        for weight in (weight for each in self._weights for weight in each):
            weight.requires_grad_(id(weight) in chosen)
            if id(weight) not in chosen:
                weight.grad = None
                if not self._keep:
                    optimizer.state.pop(weight, None)

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """All layers are trained as before."""
        for weight in (weight for each in self._weights for weight in each):
            weight.requires_grad_(True)
