"""Where the turns of one conversation are between its texts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sftkit_plugins.formats.gaps import Gaps
from sftkit_plugins.formats.probes import ASSISTANT, END, LABELS, START, Kind, Probes, kind_of, own_places
from sftkit_plugins.formats.rendering import FIX, Messages, RefusedError
from sftkit_plugins.formats.skeleton import Place, Skeleton
from sftkit_plugins.formats.stand_ins import Leaf

_FIX = " -> end every answer with the EOS token in the chat template, or use one that does, such as -p chatml"
NO_END = f"last turn has no end token{_FIX}"
END_AT_LAST = f"only the last turn has an end token{_FIX}"
NO_PROMPT = "the chat template has no generation prompt, so inference does not begin the answer as training does -> "
NO_PROMPT += "write the header of an answer if add_generation_prompt is set"


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
        ends: what follows the last stand-in in a content; see `StandIns`.
        messages: the conversation.
        gaps: takes apart what is between two texts.
        probes: renders small conversations.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        leaves: Sequence[Leaf],
        ends: Mapping[int, str],
        messages: Messages,
        gaps: Gaps,
        probes: Probes,
    ) -> None:
        self._skeleton, self._leaves, self._ends, self._messages = skeleton, leaves, ends, messages
        self._gaps, self._probes = gaps, probes
        self._owners = [leaves[leaf].owner for leaf in skeleton.order]
        self._places: dict[int, list[int]] = {}
        for place, owner in enumerate(self._owners):
            self._places.setdefault(owner, []).append(place)
        self._open: dict[int, bool] = {}

    def regions(self, number: int) -> list[tuple[Place, Place]]:
        """What a model has to write to write this message: its texts and closing token.

        Raises:
            RefusedError: if the evidence does not show where it begins or ends.
        """
        runs = self._runs(number)
        if not runs:
            return self._empty(number)
        found = []
        for at, run in enumerate(runs):
            found += self._run_regions(number, run, at == 0, at == len(runs) - 1)
        return found

    def notes(self, wanted: Collection[int]) -> tuple[str, ...]:
        """What the user should know about the header and the closing tokens of the turns."""
        unprompted = (NO_PROMPT,) if self._gaps.unprompted else ()
        return unprompted + self._end_notes()

    def _end_notes(self) -> tuple[str, ...]:
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
        return (
            role,
            "reasoning" in kinds,
            bool(kinds & {"content", "thinking", "blank"}),
            bool(kinds & {"argument", "name"}),
        )

    def _run_regions(self, number: int, run: _Run, first: bool, last: bool) -> list[tuple[Place, Place]]:
        literals = self._skeleton.literals
        text_start = (run.first, len(literals[run.first]))
        start: Place | None = text_start
        if first and self._messages[number]["role"] == "assistant":
            length = self._gaps.known_header(self._kind_before(number, run.first), literals[run.first])
            start = None if length is None else (run.first, length)
        gap = literals[run.last + 1]
        after = self._kind_after(number, run.last, last)
        kept = self._kept(number, run.last, gap)
        end = (run.last + 1, kept + self._trimmed(gap[kept:], self._gaps.known_closing(run.kind, after, gap[kept:])))
        marked = self._marked(start, text_start, end)
        if marked is None:
            raise self._unclear(number, literals[run.first])
        if last:
            final = marked[-1][1]
            self._open[number] = not (final[0] == run.last + 1 and gap[kept : final[1]].strip())
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

    def _kept(self, number: int, place: int, gap: str) -> int:
        """Length of the end of a content at the beginning of the gap after it."""
        end = self._ends.get(number, "")
        if not end or self._leaves[self._skeleton.order[place]].kind != "content":
            return 0
        return next((len(form) for form in (end, end.rstrip(), end.strip()) if gap.startswith(form)), 0)

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
        closing = self._gaps.closing(ASSISTANT, self._kind_after(number, place, False), gap[length:])
        return [((place, length), (place, length + self._trimmed(gap[length:], closing)))]

    def _unclear(self, number: int, gap: str) -> RefusedError:
        what = f"the text of message {number + 1} cannot be located in the chat template's output"
        prompt = self._gaps.prompt
        why = f"the generation prompt {prompt!r} is not before it, but {gap[-60:]!r}"
        return RefusedError(f"{what}: {why}", FIX)
