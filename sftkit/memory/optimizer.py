"""The size of the state that an optimizer keeps for each trained weight."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger("sftkit")

DEFAULT = "adamw_torch_fused"  # of transformers.TrainingArguments, on torch 2.8 and later
BLOCK = 256  # values of an 8-bit state that share a scale
SMALL = 4096  # values; the states of smaller weights are in float32 instead of 8 bits
FLOAT = 4  # bytes


def _as_weight(states: int) -> Callable[[Tensor], int]:
    return lambda weight: states * weight.numel() * weight.element_size()


def _in_float(states: int) -> Callable[[Tensor], int]:
    return lambda weight: states * weight.numel() * FLOAT


def _in_bytes(states: int) -> Callable[[Tensor], int]:
    def size(weight: Tensor) -> int:
        values = weight.numel()
        each = values * FLOAT if values < SMALL else values + math.ceil(values / BLOCK) * FLOAT
        return states * each

    return size


def _factored(weight: Tensor) -> int:
    """Adafactor keeps a row and a column for each matrix (Shazeer and Stern, 2018, section 3)."""
    shape = weight.shape
    if len(shape) < 2:
        return weight.numel() * FLOAT
    return (weight.numel() // shape[-1] + weight.numel() // shape[-2]) * FLOAT


STATES: dict[str, Callable[[Tensor], int]] = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "adamw_apex_fused", "schedule_free_adamw"), _as_weight(2)),
    "schedule_free_radam": _as_weight(2),
    "schedule_free_sgd": _as_weight(1),
    "stable_adamw": _as_weight(2),
    "grokadamw": _as_weight(3),
    "adafactor": _factored,
    "sgd": _as_weight(0),
    "adagrad": _as_weight(1),
    "rmsprop": _as_weight(1),
    **dict.fromkeys(("adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit"), _in_bytes(2)),
    "paged_adamw_32bit": _in_float(2),
    **dict.fromkeys(("lion_8bit", "paged_lion_8bit", "rmsprop_bnb_8bit"), _in_bytes(1)),
    **dict.fromkeys(("lion_32bit", "paged_lion_32bit", "rmsprop_bnb", "rmsprop_bnb_32bit"), _in_float(1)),
    **dict.fromkeys(("ademamix_8bit", "paged_ademamix_8bit"), _in_bytes(3)),
    **dict.fromkeys(("ademamix", "paged_ademamix_32bit"), _in_float(3)),
}


def state_bytes(name: str | None, trained: list[Any]) -> int:
    """Bytes of an optimizer's state; an unknown optimizer counts as AdamW, and a warning is logged.

    Args:
        name: the value of `train.optim`; None for the default.
        trained: the weights with a gradient.
    """
    name = str(name or DEFAULT)
    if name not in STATES:
        logger.warning("memory: the size of the state of optimizer %s is not known; it is counted as AdamW", name)
    return sum(STATES.get(name, _as_weight(2))(weight) for weight in trained)
