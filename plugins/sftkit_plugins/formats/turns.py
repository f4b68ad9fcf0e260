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

from sftkit_plugins.formats.finder import Finder
from sftkit_plugins.formats.gaps import Gaps
from sftkit_plugins.formats.messages import PLAIN
from sftkit_plugins.formats.presence import Presence, check_order, check_presence, missing_in, missing_leaves
from sftkit_plugins.formats.probes import Probes
from sftkit_plugins.formats.rendering import FIX, Messages, RefusedError, Region, RejectedError, Rendering
from sftkit_plugins.formats.skeleton import Place, Skeleton
from sftkit_plugins.formats.stand_ins import TOOLS, Leaf, StandIns

STRIPPED = "spaces or line breaks around a content removed by the template"
KEPT = 512
"""How many structures of conversations are kept for each template."""


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
    ends: Mapping[int, str]
    missing: Sequence[Leaf]
    turns: dict[frozenset[int], _Turns | tuple[str, str]] = field(default_factory=dict)

    def strips(self, starts: Sequence[int], values: Sequence[Any]) -> bool:
        """Whether a row's text lacks spaces or line breaks at the beginning or end of a content.

        Args:
            starts: where each literal begins in the text.
            values: the texts of the row.
        """
        thoughts = {leaf.owner for leaf in self.leaves if leaf.kind == "thinking"}  # separated by line breaks
        for place, leaf in enumerate(self.skeleton.order):
            value, kind = values[leaf], self.leaves[leaf].kind
            if kind == "content" and value != value.strip() and self.leaves[leaf].owner not in thoughts:
                length = starts[place + 1] - starts[place] - len(self.skeleton.literals[place])
                if length < len(value):
                    return True
        return False


@dataclass(frozen=True)
class Shared:
    """What conversations of plain messages with the same roles have in common: all but the texts."""

    rendering: Rendering
    variables: Mapping[str, Any]
    structure: _Structure
    turns: _Turns

    def find(self, messages: Messages, values: Sequence[str]) -> tuple[str, list[Region], tuple[str, ...]] | None:
        """The rendered conversation, its regions and notes; None if the texts are not where those of the first row are.

        Args:
            messages: the conversation.
            values: its texts, as `Turns.values` returns them.

        Raises:
            RejectedError: if the template rejects the messages.
        """
        text = self.rendering.text(messages, None, self.variables)
        skeleton, notes = self.structure.skeleton, self.turns.notes
        starts = skeleton.unchanged(text, values)
        if not starts:
            found = skeleton.find(text, values)
            if isinstance(found, int):
                return None
            starts = found
            if self.structure.strips(starts, values):
                notes = (*notes, STRIPPED)
        regions = [(starts[low] + after, starts[high] + until) for _, (low, after), (high, until) in self.turns.regions]
        return text, regions, notes


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
            RefusedError: if the template rejects the messages, leaves out a part of them, or does not reveal where a
                turn begins or ends.
        """
        text = self._rendering.text(messages, tools, variables)
        failed: tuple[_Structure, int] | None = None
        for full, marked in self._attempts:
            structure, values = self._structure(messages, tools, variables, full, marked)
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
            notes = (STRIPPED,) if structure.strips(starts, values) else ()
            return Found(text, regions, turns.presence, turns.notes + notes)
        if wanted:
            raise _changed(failed)
        replaced = self._replaced(messages, tools, variables)
        missing = missing_in(text, replaced)
        shown = [leaf for leaf in replaced.leaves if leaf not in missing]
        presence = check_presence(missing, shown, messages, self._probes, self._allowed)
        return Found(text, [], presence, presence.notes)

    def shared(self, messages: Messages, variables: Mapping[str, Any], wanted: frozenset[int]) -> Shared | None:
        """What all conversations of plain messages with these roles have in common; None if that cannot be used.

        Args:
            messages: such a conversation, which `find` has located the turns of.
            variables: further variables for the template.
            wanted: the numbers of the messages to locate.
        """
        if _plain_values(messages, self._probes.source.keywords) is None or "documents" in variables:
            return None
        structure, _ = self._structure(messages, None, variables, *self._attempts[0])
        if structure is None:
            return None
        try:
            turns = self._turns(structure, messages, wanted)
        except RefusedError:
            return None
        return None if turns.presence.reasoning else Shared(self._rendering, variables, structure, turns)

    def values(self, messages: Messages) -> list[str] | None:
        """The contents of plain messages, into which the template does not look; None for others."""
        return _plain_values(messages, self._probes.source.keywords)

    @property
    def _attempts(self) -> tuple[tuple[bool, bool], ...]:
        """Whether to replace everything, and whether to mark regions; both may change what is written."""
        marked = self._probes.source.marked
        return ((True, marked), (False, marked), (False, False)) if marked else ((True, False), (False, False))

    def _structure(
        self,
        messages: Messages,
        tools: list[dict[str, Any]] | None,
        variables: Mapping[str, Any],
        full: bool,
        marked: bool,
    ) -> tuple[_Structure | None, Sequence[Any]]:
        """What the template writes around the texts, and the texts."""
        values = None
        if full and not tools and "documents" not in variables:
            values = _plain_values(messages, self._probes.source.keywords)
        if values is not None:
            key: Any = tuple([message["role"] for message in messages])
            if key in self._structures:
                self._structures.move_to_end(key)
                return self._structures[key], values
        stand_ins = StandIns(self._probes.source, full)
        masked = stand_ins.messages(messages), stand_ins.tools(tools), stand_ins.variables(variables)
        if values is None:
            blank = [number for number, leaf in enumerate(stand_ins.leaves) if leaf.kind == "blank"]
            key = json.dumps((masked, blank, marked), ensure_ascii=False, default=repr)
        if key in self._structures:
            self._structures.move_to_end(key)
            return self._structures[key], stand_ins.values
        try:
            text = self._rendering.text(*masked, marked=marked)
        except RejectedError:
            self._structures[key] = None
        else:
            skeleton = Skeleton.of(text)
            missing = missing_leaves(skeleton, stand_ins.leaves, messages)
            if not full:  # these have no stand-ins
                replaced = self._replaced(messages, tools, variables)
                missing += missing_in("\n".join(skeleton.literals), replaced, ("tool", "name"))
            self._structures[key] = _Structure(skeleton, stand_ins.leaves, stand_ins.ends, missing)
        if len(self._structures) > KEPT:
            self._structures.popitem(last=False)
        return self._structures[key], stand_ins.values

    def _replaced(
        self, messages: Messages, tools: list[dict[str, Any]] | None, variables: Mapping[str, Any]
    ) -> StandIns:
        stand_ins = StandIns(self._probes.source)
        stand_ins.messages(messages)
        stand_ins.tools(tools)
        stand_ins.variables(variables)
        return stand_ins

    def _turns(self, structure: _Structure, messages: Messages, wanted: frozenset[int]) -> _Turns:
        if wanted not in structure.turns:
            if len(structure.turns) >= KEPT:
                structure.turns.clear()
            try:
                structure.turns[wanted] = self._locate(structure, messages, wanted)
            except RefusedError as refusal:
                structure.turns[wanted] = refusal.message, refusal.fix
        found = structure.turns[wanted]
        if not isinstance(found, _Turns):
            raise RefusedError(*found)
        return found

    def _locate(self, structure: _Structure, messages: Messages, wanted: frozenset[int]) -> _Turns:
        skeleton, leaves = structure.skeleton, structure.leaves
        shown = [leaves[number] for number in skeleton.order]
        presence = check_presence(structure.missing, shown, messages, self._probes, self._allowed)
        check_order(skeleton, leaves, messages)
        finder = Finder(skeleton, leaves, structure.ends, messages, self._gaps, self._probes)
        regions = [(number, low, high) for number in sorted(wanted) for low, high in finder.regions(number)]
        regions.sort(key=lambda region: region[1])
        return _Turns(tuple(regions), presence, presence.notes + finder.notes(wanted))


def _plain_values(messages: Messages, keywords: Collection[str]) -> list[str] | None:
    """The contents of messages without further keys; None if the template may look into one of them."""
    values = []
    for message in messages:
        content = message.get("content")
        if not content or len(message) != 2 or message.keys() != PLAIN or content.isspace():
            return None
        if keywords and any(word in content for word in keywords):
            return None
        values.append(content)
    return values


def _changed(failed: tuple[_Structure, int] | None) -> RefusedError:
    """The refusal of a row whose text is not that of its structure with the texts between."""
    where = "the texts of the messages"
    if failed is not None:
        structure, place = failed
        order = structure.skeleton.order
        owner = structure.leaves[order[min(place, len(order) - 1)]].owner if order else TOOLS
        where = f"the text of message {owner + 1}" if owner >= 0 else "the texts of the messages"
    why = "it does not render them unchanged" if failed is None else "the template does not render it unchanged"
    return RefusedError(f"{where} cannot be located in the chat template's output: {why}", FIX)
