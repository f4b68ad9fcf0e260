"""What other processes receive: the plugin, and what its hooks make for data workers and the preparation."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

from sftkit.testing.conformance.checks import CheckFailed, check, require

if TYPE_CHECKING:
    from sftkit.testing.conformance.workbench import Workbench


@check(declared=True)
def plugin_can_be_pickled(bench: Workbench, subject: str) -> None:
    """The plugin can be pickled, and is the same afterwards"""
    again = pickled(bench.plugin, "the plugin")
    require(again == bench.plugin, "the pickled plugin has other options", "keep plain data in the options")


def pickled(value: Any, what: str) -> Any:
    """A value pickled and read back, as another process receives it.

    Raises:
        CheckFailed: if it cannot be pickled.
    """
    try:
        return pickle.loads(pickle.dumps(value))
    except Exception as error:  # pickle raises anything
        fix = "keep plain data in a frozen dataclass at the top level of a module, without functions or open files"
        raise CheckFailed(f"{what} cannot be pickled: {type(error).__name__}: {error}", fix) from error


def in_worker(function: Any, *arguments: Any) -> Any:
    """What a function returns in a process of the preparation."""
    from sftkit.data.processes import worker_processes

    with worker_processes(1) as executor:
        return executor.submit(function, *arguments).result(timeout=120)
