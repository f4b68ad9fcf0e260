"""Where the contents are in a rendered conversation: found once per sequence of roles, and verified for each row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sftkit_plugins.formats.rendering import Region

Place = tuple[int, int]
"""The index of a literal, and a position in it."""

# Stand-ins begin and end with private-use characters: templates do not split or strip them, and data hardly ever
# contains them.
_SENTINEL = re.compile("\ue0f0(\\d+)\ue0f1")


def stand_ins(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, with a stand-in in place of each content."""
    return [{**message, "content": f"\ue0f0{index}\ue0f1"} for index, message in enumerate(messages)]


@dataclass(frozen=True)
class Skeleton:
    """What a template writes around the contents of conversations with the same roles.

    Attributes:
        literals: the text before, between and after the contents.
        order: the index of the message whose content is between each literal and the next.
        regions: the trained regions, by literal and position.
    """

    literals: tuple[str, ...]
    order: tuple[int, ...]
    regions: tuple[tuple[Place, Place], ...]

    @classmethod
    def of(cls, text: str, regions: Sequence[Region]) -> Skeleton | None:
        """From a conversation rendered with stand-ins; None if a region begins or ends inside a stand-in."""
        pieces = _SENTINEL.split(text)
        literals, order = tuple(pieces[::2]), tuple(map(int, pieces[1::2]))
        starts, at = [], 0
        for index, literal in enumerate(literals):
            starts.append(at)
            at += len(literal) + (len(pieces[2 * index + 1]) + 2 if index < len(order) else 0)
        places: list[tuple[Place, Place]] = []
        for first, end in regions:
            low, high = _place(first, starts, literals), _place(end, starts, literals)
            if low is None or high is None:
                return None
            places.append((low, high))
        return cls(literals, order, tuple(places))

    def find(self, text: str, contents: Sequence[str]) -> list[Region] | None:
        """The regions in a rendered conversation, or None if the text is not the literals with the contents between.

        A content may be unchanged or stripped. The match covers the whole text, which proves where each content is.
        """
        starts, at = [0], len(self.literals[0])
        if not text.startswith(self.literals[0]):
            return None
        for number, index in enumerate(self.order):
            after = self.literals[number + 1]
            for content in (contents[index], contents[index].strip()):
                end = at + len(content)
                if text.startswith(content, at) and text.startswith(after, end):
                    break
            else:
                return None
            starts.append(end)
            at = end + len(after)
        if at != len(text):
            return None
        return [(starts[low] + first, starts[high] + end) for (low, first), (high, end) in self.regions]


def _place(at: int, starts: Sequence[int], literals: Sequence[str]) -> Place | None:
    for number, (start, literal) in enumerate(zip(starts, literals, strict=True)):
        if start <= at <= start + len(literal):
            return number, at - start
    return None
