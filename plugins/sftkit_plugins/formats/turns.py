"""Where the turns of a conversation are in its rendered text, for any chat template.

A row is rendered twice: as it is, and with a stand-in in place of each text. The second shows what the template writes
around the texts; it is kept for other rows of the same structure. A turn begins where the generation prompt before it
ends: the model does not have to learn what it is given at inference. It ends with the token that closes it.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sftkit_plugins.formats.gaps import Gaps
from sftkit_plugins.formats.messages import PLAIN
from sftkit_plugins.formats.presence import Presence, check_presence
from sftkit_plugins.formats.probes import END, LABELS, START, Kind, Probes, kind_of, own_places
from sftkit_plugins.formats.rendering import FIX, Messages, Refusal, Region, Rejected, Rendering
from sftkit_plugins.formats.skeleton import Place, Skeleton
from sftkit_plugins.formats.stand_ins import TOOLS, Leaf, StandIns

KEPT = 512
"""How many structures of conversations are kept for each template."""

NO_END = "last turn has no end token"
END_AT_LAST = "only the last turn has an end token"


@dataclass(frozen=True)
class Found:
    """A rendered row.

    Attributes:
        text: the rendered conversation.
        regions: the turns that were asked for, in order, each with the number of its message. A turn may have several
            regions, or none if it is empty.
        presence: what the template leaves out.
        notes: what the user should know.
    """

    text: str
    regions: list[tuple[int, Region]]
    presence: Presence
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Turns:
    """The turns of all rows with one structure; regions by literal of the skeleton and position in it."""

    regions: tuple[tuple[int, Place, Place], ...]
    presence: Presence
    notes: tuple[str, ...]


@dataclass
class _Structure:
    """A conversation rendered with stand-ins, and what was found in it."""

    skeleton: Skeleton
    leaves: Sequence[Leaf]
    turns: dict[frozenset[int], _Turns | Refusal] = field(default_factory=dict)


class Turns:
    """Finds the turns of conversations in one template.

    Args:
        rendering: renders the conversations.
        probes: renders small conversations with the same template.
        allowed: what the template may leave out.
    """

    def __init__(self, rendering: Rendering, probes: Probes, allowed: Collection[str]) -> None:
        self._rendering, self._probes, self._allowed = rendering, probes, allowed
        self._gaps = Gaps(probes)
        self._structures: OrderedDict[Any, _Structure | None] = OrderedDict()

    def find(
        self,
        messages: Messages,
        tools: list[dict[str, Any]] | None,
        variables: Mapping[str, Any],
        wanted: frozenset[int],
    ) -> Found:
        """Render a conversation and locate some of its turns.

        Args:
            messages: the conversation, in the form that the template expects.
            tools: descriptions of the tools.
            variables: further variables for the template.
            wanted: the numbers of the messages to locate.

        Raises:
            Refusal: if the template rejects the messages, leaves out a part of them, or does not reveal where a turn
                begins or ends.
        """
        text = self._rendering.text(messages, tools, variables)
        failed: tuple[_Structure, int] | None = None
        for full in (True, False):
            structure, values = self._structure(messages, tools, variables, full)
            if structure is None:
                continue
            starts = structure.skeleton.find(text, values)
            if isinstance(starts, int):
                failed = structure, starts
                continue
            turns = self._turns(structure, messages, wanted)
            regions = [
                (number, (starts[low[0]] + low[1], starts[high[0]] + high[1])) for number, low, high in turns.regions
            ]
            return Found(text, regions, turns.presence, turns.notes)
        raise _changed(failed, messages)

    def _structure(
        self, messages: Messages, tools: list[dict[str, Any]] | None, variables: Mapping[str, Any], full: bool
    ) -> tuple[_Structure | None, Sequence[Any]]:
        """What the template writes around the texts, and the texts."""
        values = _plain_values(messages, self._probes.source.keywords) if full and not tools and not variables else None
        if values is not None:
            key: Any = tuple([message["role"] for message in messages])
            if key in self._structures:
                self._structures.move_to_end(key)
                return self._structures[key], values
        stand_ins = StandIns(self._probes.source, full)
        masked = stand_ins.messages(messages), stand_ins.tools(tools), stand_ins.variables(variables)
        if values is None:
            blank = [number for number, leaf in enumerate(stand_ins.leaves) if leaf.kind == "blank"]
            key = json.dumps((masked, blank), ensure_ascii=False, default=repr)
        if key in self._structures:
            self._structures.move_to_end(key)
            return self._structures[key], stand_ins.values
        try:
            text = self._rendering.text(*masked, marked=self._probes.source.marked)
        except Rejected:
            self._structures[key] = None
        else:
            self._structures[key] = _Structure(Skeleton.of(text), stand_ins.leaves)
        if len(self._structures) > KEPT:
            self._structures.popitem(last=False)
        return self._structures[key], stand_ins.values

    def _turns(self, structure: _Structure, messages: Messages, wanted: frozenset[int]) -> _Turns:
        if wanted not in structure.turns:
            try:
                structure.turns[wanted] = self._locate(structure, messages, wanted)
            except Refusal as refusal:
                structure.turns[wanted] = refusal
        found = structure.turns[wanted]
        if isinstance(found, Refusal):
            raise found
        return found

    def _locate(self, structure: _Structure, messages: Messages, wanted: frozenset[int]) -> _Turns:
        skeleton, leaves = structure.skeleton, structure.leaves
        presence = check_presence(skeleton, leaves, messages, self._probes, self._allowed)
        finder = Finder(skeleton, leaves, messages, self._gaps, self._probes)
        regions = [(number, low, high) for number in sorted(wanted) for low, high in finder.regions(number)]
        regions.sort(key=lambda region: region[1])
        return _Turns(tuple(regions), presence, presence.notes + finder.notes(wanted))


def _plain_values(messages: Messages, keywords: Collection[str]) -> list[str] | None:
    """The contents of messages without further keys; None if the template may look into one of them."""
    values = []
    for message in messages:
        content = message.get("content")
        if message.keys() != PLAIN or not content or content.isspace() or any(word in content for word in keywords):
            return None
        values.append(content)
    return values


def _changed(failed: tuple[_Structure, int] | None, messages: Messages) -> Refusal:
    """The refusal of a row whose text is not that of its structure with the texts between."""
    where = "the texts of the messages"
    if failed is not None:
        structure, place = failed
        order = structure.skeleton.order
        owner = structure.leaves[order[min(place, len(order) - 1)]].owner if order else TOOLS
        where = f"the text of message {owner + 1}" if owner >= 0 else "the texts of the messages"
    why = "it does not render them unchanged" if failed is None else "the template does not render it unchanged"
    return Refusal(f"{where} cannot be located in the chat template's output: {why}", FIX)


@dataclass(frozen=True)
class _Run:
    """Texts of a turn without those of others between: positions in the order of the skeleton."""

    first: int
    last: int
    kind: Kind


class Finder:
    """Locates the turns of one structure.

    Args:
        skeleton: the conversation, rendered with stand-ins.
        leaves: what the stand-ins are for.
        messages: the conversation.
        gaps: takes apart what is between two texts.
        probes: renders small conversations.
    """

    def __init__(
        self, skeleton: Skeleton, leaves: Sequence[Leaf], messages: Messages, gaps: Gaps, probes: Probes
    ) -> None:
        self._skeleton, self._leaves, self._messages = skeleton, leaves, messages
        self._gaps, self._probes = gaps, probes
        self._owners = [leaves[leaf].owner for leaf in skeleton.order]
        self._places: dict[int, list[int]] = {}
        for place, owner in enumerate(self._owners):
            self._places.setdefault(owner, []).append(place)
        self._open: dict[int, bool] = {}

    def regions(self, number: int) -> list[tuple[Place, Place]]:
        """What a model has to write to write this message: its texts and closing token.

        Raises:
            Refusal: if the evidence does not show where it begins or ends.
        """
        runs = self._runs(number)
        if not runs:
            return self._empty(number)
        found = []
        for at, run in enumerate(runs):
            found += self._run_regions(number, run, at == 0, at == len(runs) - 1)
        return found

    def notes(self, wanted: Collection[int]) -> tuple[str, ...]:
        """What the user should know about the closing tokens of the turns."""
        last = len(self._messages) - 1
        answers = [number for number in self._open if self._messages[number]["role"] == "assistant"]
        if last not in answers:
            return ()
        if self._open[last]:
            return (NO_END,)
        middle = [number for number in answers if number < last and self._messages[number + 1]["role"] == "user"]
        return (END_AT_LAST,) if any(self._open[number] for number in middle) else ()

    def _runs(self, number: int) -> list[_Run]:
        kinds = self._probes.own_kinds(kind_of(self._messages[number])) if self._has_names(number) else frozenset()
        order, leaves = self._skeleton.order, self._leaves
        places = own_places(order, leaves, kinds, self._places.get(number, ()))
        groups: list[list[int]] = []
        for place in places:
            if groups and place == groups[-1][-1] + 1:
                groups[-1].append(place)
            else:
                groups.append([place])
        return [_Run(group[0], group[-1], self._kind(number, group)) for group in groups]

    def _has_names(self, number: int) -> bool:
        return bool(self._messages[number].get("tool_calls"))

    def _kind(self, number: int, places: Sequence[int]) -> Kind:
        role = self._messages[number]["role"]
        kinds = {self._leaves[self._skeleton.order[place]].kind for place in places}
        if role != "assistant":
            return (role, False, True, False)
        return (role, "reasoning" in kinds, bool(kinds & {"content", "thinking", "blank"}), bool(kinds & {"argument", "name"}))

    def _run_regions(self, number: int, run: _Run, first: bool, last: bool) -> list[tuple[Place, Place]]:
        literals = self._skeleton.literals
        text_start = (run.first, len(literals[run.first]))
        start: Place | None = text_start
        if first and self._messages[number]["role"] == "assistant":
            before = self._kind_before(number, run.first)
            length = self._gaps.header(before, literals[run.first])
            start = None if length is None else (run.first, length)
        gap = literals[run.last + 1]
        after = self._kind_after(number, run.last, last)
        end = (run.last + 1, self._trimmed(gap, self._gaps.closing(run.kind, after, gap)))
        marked = self._marked(start, text_start, end)
        if marked is None:
            raise self._unclear(number, literals[run.first])
        if last:
            final = marked[-1][1]
            self._open[number] = not (final[0] == run.last + 1 and gap[: final[1]].strip())
        return marked

    def _marked(self, start: Place | None, text_start: Place, end: Place) -> list[tuple[Place, Place]] | None:
        """A region inside the template's markers, as far as they leave out neither texts nor the closing token.

        Returns:
            Its parts; None if the beginning is unknown.
        """
        low = (0, 0) if start is None else start
        marks = [mark for mark in self._skeleton.marks if mark[1] > low and mark[0] < end]
        if start is None:
            marks = [mark for mark in marks if mark[1] > text_start]
        if not marks:
            return None if start is None else [(start, end)]
        first = min(max(low, marks[0][0]), text_start)
        if start is None and marks[0][0] > text_start:
            return None
        parts = [(first, marks[0][1])]
        for mark in marks[1:]:
            if mark[0][0] > parts[-1][1][0] or mark[0] <= parts[-1][1]:  # a text, or nothing, is between them
                parts[-1] = (parts[-1][0], mark[1])
            else:
                parts.append(mark)
        final = parts[-1][1]
        gap = self._skeleton.literals[end[0]]
        if final[0] == end[0]:
            final = max(end, (end[0], self._trimmed(gap, final[1])))
        parts[-1] = (parts[-1][0], final if final[0] == end[0] else end)
        return parts

    def _trimmed(self, gap: str, length: int) -> int:
        """Whitespace after the closing token does not belong to a turn; without such a token, whitespace closes it."""
        return len(gap[:length].rstrip()) or length

    def _kind_before(self, number: int, place: int) -> Kind | None:
        if place == 0:
            return START if number == 0 else None
        place -= 1
        while place and self._leaves[self._skeleton.order[place]].kind in LABELS:  # may be those of another message
            place -= 1
        owner = self._owners[place]
        if owner == number - 1:
            return kind_of(self._messages[owner])
        if 0 <= owner < number and all(between in self._places for between in range(owner, number)):
            return self._kind(owner, [place])  # a text that the template moved
        return None

    def _kind_after(self, number: int, place: int, last: bool) -> Kind:
        if number == len(self._messages) - 1:
            return END
        following = number + 1
        if place + 1 < len(self._owners) and last:
            following = max(following, self._owners[place + 1])
        return kind_of(self._messages[following])

    def _empty(self, number: int) -> list[tuple[Place, Place]]:
        """The closing of a turn without any text that the template renders."""
        if self._messages[number]["role"] != "assistant":
            return []
        place = max((at for at, owner in enumerate(self._owners) if 0 <= owner < number), default=-1) + 1
        before = self._kind_before(number, place)
        gap = self._skeleton.literals[place]
        length = self._gaps.header(before, gap) if before is not None else None
        if length is None:
            return []
        closing = self._gaps.closing(("assistant", False, True, False), self._kind_after(number, place, False), gap[length:])
        return [((place, length), (place, length + self._trimmed(gap[length:], closing)))]

    def _unclear(self, number: int, gap: str) -> Refusal:
        what = f"the text of message {number + 1} cannot be located in the chat template's output"
        prompt = self._gaps.prompt
        why = f"the generation prompt {prompt!r} is not before it, but {gap[-60:]!r}"
        return Refusal(f"{what}: {why}", FIX)
