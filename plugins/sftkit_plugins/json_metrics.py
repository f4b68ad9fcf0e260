"""How many completions are JSON, and the JSON that was asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from sftkit.api import Field, Plugin, dataclass, hookimpl

if TYPE_CHECKING:
    from sftkit.api import Completion


@dataclass(frozen=True, kw_only=True)
class JSONMetrics(Plugin):
    """Offers the metric json: the shares of completions that are valid JSON, and that equal the reference as JSON."""

    fenced: Annotated[bool, Field(description="read what is inside a code fence, if the text has one")] = False

    @hookimpl
    def metrics(self) -> Mapping[str, Callable[[Sequence[Completion]], Mapping[str, float]]]:
        """The metric ``json``."""
        return {"json": JSONShares(self.fenced)}


class JSONShares:
    """The shares of completions that are JSON. The order of keys and the layout do not matter.

    Args:
        fenced: whether to read what is inside a code fence.
    """

    names = ("json_valid", "json_equal")

    def __init__(self, fenced: bool) -> None:
        self._fenced = fenced

    def __call__(self, completions: Sequence[Completion]) -> Mapping[str, float]:
        """The shares, from 0 to 1."""
        read = [(self._read(each.text), self._read(each.reference)) for each in completions]
        valid = sum(text is not None for text, _ in read)
        equal = sum(text is not None and text == reference for text, reference in read)
        return {"json_valid": valid / len(read), "json_equal": equal / len(read)}

    def _read(self, text: str) -> str | None:
        """The JSON in a text, with its keys in order; None if it is not valid."""
        if self._fenced and "```" in text:
            text = text.split("```")[1].partition("\n")[2]
        try:
            return json.dumps(json.loads(text), sort_keys=True)
        except ValueError:
            return None
