"""The units of a template's text: tags such as ``<|im_start|>`` or ``[/INST]``, words, and single characters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_TAG_FORMS = r"<[^<>\s]{1,64}>|\[/?[A-Z_]+\]|\[\|[^\[\]\s]{1,64}\|\]"


class Units:
    """Splits the headers and closings of one template.

    Args:
        special_tokens: the tokenizer's, by name; each is a tag.

    Attributes:
        tag: matches a tag.
    """

    def __init__(self, special_tokens: Mapping[str, Any]) -> None:
        values = special_tokens.values()
        special = {str(text) for token in values for text in (token if isinstance(token, list) else [token])}
        special = {text for text in special if text.strip()}
        forms = "|".join([*map(re.escape, sorted(special, key=len, reverse=True)), _TAG_FORMS])
        self.tag = re.compile(forms)
        self._unit = re.compile(rf"{forms}|\w+|.", re.DOTALL)

    def of(self, text: str) -> list[str]:
        """The units of a text, in order."""
        return self._unit.findall(text)

    def matches(self, text: str) -> list[re.Match[str]]:
        """The units of a text with their places."""
        return list(self._unit.finditer(text))

    def whole(self, text: str, length: int) -> int:
        """The length, reduced so that no tag or word of the text is split."""
        end = 0
        for unit in self._unit.finditer(text):
            if unit.end() > length:
                break
            end = unit.end()
        return end

    def shared_end(self, first: str, second: str) -> int:
        """Length of the common end of two texts, without a part of a tag or word.

        Numbers are the same as others: a header may count the rounds.
        """
        counted = [["0" if unit.isdecimal() else unit for unit in self.of(text)] for text in (first, second)]
        masked = ["".join(units) for units in counted]
        length = self._shared_end(*masked)
        kept = 0
        for unit, original in zip(reversed(counted[0]), reversed(self.of(first)), strict=True):
            if length < len(unit):
                break
            length, kept = length - len(unit), kept + len(original)
        return kept

    def _shared_end(self, first: str, second: str) -> int:
        cut = len(first) - shared(first[::-1], second[::-1])
        starts = (unit.start() for unit in self._unit.finditer(first))
        return len(first) - next((start for start in starts if start >= cut), len(first))


def shared(first: str, second: str) -> int:
    """Length of the common beginning of two texts."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
