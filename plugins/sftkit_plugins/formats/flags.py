"""The keys of a message that say whether it is trained, under the names that other tools use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sftkit.api import WEIGHT_FIX, RowError, is_weight

#: Keys for whether a message is trained: those of axolotl (the first two), of ms-swift, and of XTuner.
TRAINED = ("train", "training", "loss", "output_with_loss")
#: Keys for a message's weight: those of OpenAI and Mistral, and of ms-swift.
WEIGHTS = ("weight", "loss_scale")
#: Parts of a message that are trained, as axolotl has them; see `details`.
DETAIL = "train_detail"
FLAGS = (*TRAINED, *WEIGHTS, DETAIL)
#: The names that the flags of a message have after reading.
READ = (DETAIL, "train", "weight")


def read_flags(message: Mapping[str, Any], index: int, where: str) -> dict[str, Any]:
    """The flags of a whole message under the names ``train`` and ``weight``; null stands for the default.

    Args:
        message: the message.
        index: position of the row in its batch, for errors.
        where: the column and the number of the message, for errors.

    Raises:
        RowError: for an invalid value, or flags that contradict each other.
    """
    given = {key: message[key] for key in FLAGS if message.get(key) is not None}
    trained = {key: value for key, value in given.items() if key in TRAINED}
    for key, value in trained.items():
        if value not in (0, 1):
            fix = f"set {key} to true or false; use the key weight for other values"
            raise RowError(index, f"{where}: {key} is {value!r}", fix)
    weights = {key: value for key, value in given.items() if key in WEIGHTS}
    for key, value in weights.items():
        if not is_weight(value):
            raise RowError(index, f"{where}: {key} is {value!r}", WEIGHT_FIX)
    flags = {"train": bool(next(iter(trained.values())))} if trained else {}
    if len(set(map(bool, [*trained.values(), *weights.values()]))) > 1 or len(set(weights.values())) > 1:
        said = [f"{key} is {value!r}" for key, value in {**trained, **weights}.items()]
        raise RowError(index, f"{where}: {said[0]}, but {' and '.join(said[1:])}", "remove one of the two keys")
    return flags | ({"weight": next(iter(weights.values()))} if weights else {})


def weight_of(message: Mapping[str, Any]) -> float | None:
    """The weight of a message with the flags of `read_flags`: 0 does not train it; None if it has no flag."""
    value = message.get("weight", message.get("train"))
    return None if value is None else float(value)
