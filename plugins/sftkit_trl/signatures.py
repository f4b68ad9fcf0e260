"""Methods of 2024's subclasses, which lack arguments that transformers has passed since."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

#: Arguments that transformers has added since 2024, by method of the trainer.
ADDED = {
    "compute_loss": "num_items_in_batch",
    "training_step": "num_items_in_batch",
    "log": "start_time",
    "create_optimizer": "model",
    "_get_train_sampler": "train_dataset",
}


def accept_added_arguments(cls: type) -> bool:
    """Make methods of a subclass accept the added arguments. Changes the class.

    Returns:
        Whether its loss ignores the number of items in the accumulated batches.
    """
    for name, added in ADDED.items():
        method = getattr(cls, name)
        if not _accepts(method, added):
            setattr(cls, name, _without(method, added))
    losses = [getattr(cls, name) for name in ("compute_loss", "training_step")]
    return any(getattr(method, "ignores_number_of_items", False) for method in losses)


def call_preparation(method: Callable[..., Any], rows: Any, arguments: dict[str, Any], options: dict[str, Any]) -> Any:
    """Call ``_prepare_dataset`` of a subclass, whatever arguments the method had in its version of TRL.

    Args:
        method: the method.
        rows: its first argument, a data set.
        arguments: the further positional ones of TRL 0.11, in their order.
        options: those with a default value.
    """
    parameters = inspect.signature(method).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        options = {name: value for name, value in options.items() if name in parameters}
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return method(rows, *arguments.values(), **options)
    if "processing_class" in parameters:  # TRL 0.12
        arguments = {"processing_class": arguments["tokenizer"], **arguments}
        del arguments["tokenizer"]
    if "infinite" in parameters:  # TRL 0.7
        arguments = {**arguments, "infinite": None}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        arguments = {name: value for name, value in arguments.items() if name in parameters}
    return method(rows, **arguments, **options)


def _accepts(method: Callable[..., Any], added: str) -> bool:
    parameters = inspect.signature(method).parameters
    return (
        added in parameters
        or getattr(method, "ignores_number_of_items", False)
        or any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters.values())
    )


def _without(method: Callable[..., Any], added: str) -> Callable[..., Any]:
    """The method, called without an argument that it does not have."""
    parameters = inspect.signature(method).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]

    @functools.wraps(method)
    def called(*arguments: Any, **options: Any) -> Any:
        options.pop(added, None)
        return method(*arguments[: len(positional)], **options)

    called.ignores_number_of_items = True  # type: ignore[attr-defined]
    return called
