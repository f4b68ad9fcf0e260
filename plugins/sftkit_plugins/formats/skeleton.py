"""What a template writes around the texts of a conversation, and where these are in the text of a row."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sftkit_plugins.formats.rendering import CLOSE, OPEN
from sftkit_plugins.formats.stand_ins import STAND_IN, forms

Place = tuple[int, int]
"""The index of a literal, and a position in it."""

_MARK = re.compile(f"[{OPEN}{CLOSE}]")


@dataclass(frozen=True)
class Skeleton:
    """A text that was rendered with stand-ins, taken apart.

    Attributes:
        literals: the text before, between and after the stand-ins.
        order: which leaf is between each literal and the next.
        marks: where regions between generation markers begin and end.
    """

    literals: tuple[str, ...]
    order: tuple[int, ...]
    marks: tuple[tuple[Place, Place], ...] = ()

    @classmethod
    def of(cls, text: str) -> Skeleton:
        """Take a text apart."""
        literals: list[str] = []
        order, at = [], 0
        for found in STAND_IN.finditer(text):
            literals.append(text[at : found.start()])
            order.append(int(next(group for group in found.groups() if group)))
            at = found.end()
        literals.append(text[at:])
        places: list[Place] = []
        for number, literal in enumerate(literals):
            places += [(number, mark.start() - before) for before, mark in enumerate(_MARK.finditer(literal))]
            literals[number] = _MARK.sub("", literal)
        kinds = "".join(_MARK.findall(text))
        # nested or unbalanced markers mark nothing
        balanced = kinds == (OPEN + CLOSE) * (len(kinds) // 2)
        marks = tuple(zip(places[::2], places[1::2], strict=True)) if balanced else ()
        return cls(tuple(literals), tuple(order), marks)

    def unchanged(self, text: str, values: Sequence[str]) -> list[int]:
        """What `find` returns, if the template writes all values unchanged; an empty list if not."""
        parts = [*self.literals, *self.literals[1:]]
        shown = [values[leaf] for leaf in self.order]
        parts[::2], parts[1::2] = self.literals, shown
        if "".join(parts) != text:
            return []
        starts, at = [0], len(parts[0])
        for value, after in zip(shown, self.literals[1:], strict=True):
            starts.append(at := at + len(value))
            at += len(after)
        return starts

    def find(self, text: str, values: Sequence[Any]) -> list[int] | int:
        """Where each literal begins in the text of a row with these values.

        The values may be unchanged, stripped or escaped. The match covers the whole text, which proves where each value
        is.

        Returns:
            The positions; or, if the text is not the literals with the values between, the first value that does not
            match, as its position in `order`.
        """
        starts, at = [0], len(self.literals[0])
        if not text.startswith(self.literals[0]):
            return 0
        for number, leaf in enumerate(self.order):
            after, value = self.literals[number + 1], values[leaf]
            if not isinstance(value, str):
                value = json.dumps(value)
            for form in (value, value.strip()):
                end = at + len(form)
                if text.startswith(form, at) and text.startswith(after, end):
                    break
            else:
                return self._search(text, values)
            starts.append(end)
            at = end + len(after)
        return starts if at == len(text) else self._search(text, values)

    def _search(self, text: str, values: Sequence[Any]) -> list[int] | int:
        """The same for all forms of the values; positions that several forms allow are kept until one fits."""
        ends = {len(self.literals[0]): 0}
        trail: list[dict[int, int]] = []  # for each value: where the literal after it begins -> where that before began
        for number, leaf in enumerate(self.order):
            after = self.literals[number + 1]
            step: dict[int, int] = {}
            following: dict[int, int] = {}
            for at, start in ends.items():
                for shapes in forms(values[leaf]):
                    fitting = [at + len(form) for form in shapes if text.startswith(form, at)]
                    for end in fitting:
                        if end not in step and text.startswith(after, end):
                            step[end] = start
                            following[end + len(after)] = end
                    if step:  # escaping changes nothing, or it would not fit
                        break
            if not step:
                return number
            trail.append(step)
            ends = following
        if len(text) not in ends:
            return len(self.order)
        starts = [ends[len(text)]]
        for step in reversed(trail):
            starts.append(step[starts[-1]])
        return starts[::-1]
