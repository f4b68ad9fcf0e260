"""What plugins choose from the weights of a model, once in the life of a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class Choices:
    """Choices that are made from the weights when a run begins, and are the same in each process and resumption.

    They are in the manifest of the run. A choice is made by the main process alone, and a resumed run takes that of the
    manifest, although the weights, the device or the library may compute another one today.

    Args:
        made: those of the run that is resumed.
        from_main: returns the main process's text in every process, given a name and the text; None in a single one.
        main: whether this is the main process.
    """

    def __init__(
        self,
        made: Mapping[str, Any] | None = None,
        from_main: Callable[[str, str], str] | None = None,
        main: bool = True,
    ) -> None:
        self.made: dict[str, Any] = dict(made or {})
        self._from_main, self._main = from_main, main

    def once(self, name: str, choose: Callable[[], T]) -> T:
        """The choice of this name: the one that was made before, or else a new one. All processes call it.

        Args:
            name: begins with the name of the plugin, and has all options on which the choice depends.
            choose: makes the choice: plain data, as JSON has it. Called at most once, in the main process.
        """
        known = name in self.made
        text = json.dumps(self.made[name] if known else choose()) if self._main else ""
        found: T = json.loads(text if self._from_main is None else self._from_main(f"the choice of {name}", text))
        self.made[name] = found
        return found
