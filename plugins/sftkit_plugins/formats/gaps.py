"""Takes apart what a template writes between two messages: the closing of the one and the header of the next.

The evidence is what it writes in the same place in small conversations, with other messages before or after.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

from sftkit_plugins.formats.probes import (
    ASSISTANT,
    END,
    PROMPT,
    START,
    SYSTEM,
    USER,
    Kind,
    Probes,
)
from sftkit_plugins.formats.units import Units, shared

KEPT = 4096
"""For how many gaps the results are kept."""


class Gaps:
    """Finds closings and headers in the gaps of one template.

    Args:
        probes: renders the small conversations.
    """

    def __init__(self, probes: Probes) -> None:
        self._probes = probes
        self._closings: dict[tuple[Kind, Kind, str], int] = {}
        self._headers: dict[tuple[Kind | None, str], int | None] = {}
        tokens = probes.rendering.special_tokens
        self._units = Units(tokens)
        self._begins, self._ends = str(tokens.get("bos_token") or ""), str(tokens.get("eos_token") or "")

    def known_closing(self, kind: Kind, after: Kind, gap: str) -> int:
        """The same as `closing`, which is kept for the next gap with this text."""
        key = kind, after, gap
        if key not in self._closings:
            _make_room(self._closings)
            self._closings[key] = self.closing(kind, after, gap)
        return self._closings[key]

    def known_header(self, before: Kind | None, gap: str) -> int | None:
        """The same as `header`, which is kept for the next gap with this text."""
        key = before, gap
        if key not in self._headers:
            _make_room(self._headers)
            self._headers[key] = self.header(before, gap)
        return self._headers[key]

    # Closings

    def closing(self, kind: Kind, after: Kind, gap: str) -> int:
        """How much of a gap closes the message before it, including whitespace that may follow.

        Args:
            kind: the kind of the message before the gap.
            after: the kind of the message after the gap, or `END`.
            gap: the text.
        """
        if after == END and not self.always_prompts and not self._adds_text(kind):
            return len(gap)
        if not kind[3]:
            return self._closing(kind, after, gap)
        # what follows the last argument depends on the argument; what closes the call and the turn does not
        known = self._probes.gap(kind, after) or ""
        length = self._closing(kind, after, known)
        closed, header = known[:length].rstrip(), known[length:]
        if closed and gap.startswith(closed):
            return len(closed)
        if header.strip() and gap.endswith(header):
            return len(gap) - len(header)
        for tag in self._units.tag.finditer(closed):
            at = gap.find(closed[tag.start() :])
            if at >= 0:
                return at + len(closed) - tag.start()
        return self._closing(kind, after, gap)

    def _closing(self, kind: Kind, after: Kind, gap: str) -> int:
        last = self._probes.gap(kind, END)
        if last is not None and not self.always_prompts and not self._adds_text(kind):
            closed = self._without_ending(last).rstrip()
            if closed and gap.startswith(closed):
                rest = gap[len(closed) :].lstrip()
                further = bool(self._ends) and rest.startswith(self._ends)  # an EOS that is not after the last message
                return len(gap) - len(rest) + len(self._ends) if further else len(closed)
        return self._bounded(kind, after, gap)

    def _bounded(self, kind: Kind, after: Kind, gap: str) -> int:
        """The closing is what stays if the next message changes; the header is what stays if the previous one does."""
        answers = after in (END, PROMPT) or after[0] == "assistant"
        others = [self._probes.gap(kind, other) for other in ((USER, SYSTEM) if answers else (ASSISTANT, PROMPT))]
        high = self._units.whole(gap, max((shared(gap, other) for other in others if other is not None), default=0))
        befores = [before for before in (START, SYSTEM, USER, ASSISTANT) if before[0] != kind[0]]
        gaps = [self._probes.gap(before, ASSISTANT if answers else after) for before in befores]
        ends = [len(gap) - self._units.shared_end(gap, other) for other in gaps if other]
        low = max((end for end in ends if gap[end:].strip()), default=0)
        if answers and self.role:
            named = self._role_in(gap)
            low, high = (low, high) if named is None else (min(low, named), min(high, named))
        if low > high and gap[:high].strip():
            low = 0  # what is before the next message is not always the same header
        if low >= high:
            return low
        opener = next(
            (tag.start() for tag in self._units.tag.finditer(gap, low, high) if tag.group() == self.opener), None
        )
        if opener is not None:
            return opener
        tags = [tag.end() for tag in self._units.tag.finditer(gap, 0, high)]
        if tags and tags[-1] >= low:
            return tags[-1]
        return low if gap[:low].strip() else len(gap[:high]) - len(gap[:high].lstrip())

    def _adds_text(self, kind: Kind) -> bool:
        """Whether the template writes words after a last message, which cannot be its closing."""
        last, middle = self._probes.gap(kind, END), self._probes.gap(kind, USER)
        if last is None or middle is None:
            return False
        added = last[self._units.whole(last, shared(last, middle)) :]
        return any(unit.isalpha() for unit in self._units.of(added))

    def _without_ending(self, last: str) -> str:
        """The end of a conversation without what is only written there, such as an EOS after all messages."""
        alone, prompt = self._probes.gap(USER, END), self._probes.gap(USER, PROMPT)
        if alone is None or prompt is None or alone == prompt:
            return last
        ending = alone[self._units.whole(alone, shared(alone, prompt)) :]
        return last[: -len(ending)] if ending.strip() and last.endswith(ending) else last

    @cached_property
    def always_prompts(self) -> bool:
        """Whether the template writes a generation prompt even if none is asked for."""
        return all(self._role_in(self._probes.gap(before, END) or "") is not None for before in (USER, ASSISTANT))

    @cached_property
    def unprompted(self) -> bool:
        """Whether the template writes a header before answers, but no generation prompt."""
        gap, prompt = self._probes.gap(USER, ASSISTANT) or "", self._probes.gap(USER, PROMPT) or ""
        return not self.role and bool(gap[shared(gap, prompt) :].strip())

    @cached_property
    def opener(self) -> str | None:
        """The tag with which the first message begins, if such a tag is also between messages."""
        inner = [self._probes.gap(*pair) or "" for pair in ((USER, ASSISTANT), (ASSISTANT, USER))]
        for first in (SYSTEM, USER):
            text = self._probes.gap(START, first) or ""
            for tag in self._units.tag.finditer(text):
                # between words and another tag, it closes a default system message
                words = any(unit.isalpha() for unit in self._units.of(text[: tag.start()]))
                closes = words and self._units.tag.match(text[tag.end() :].lstrip())
                if tag.group() != self._begins and not closes and any(tag.group() in gap for gap in inner):
                    return tag.group()
        return None

    # Headers

    def header(self, before: Kind | None, gap: str) -> int | None:
        """How much of the gap before an answer the model is given at inference.

        That is the generation prompt, as far as the gap contains it.

        Args:
            before: the kind of the message before the gap; None if unknown.
            gap: the text up to the first text of the answer.

        Returns:
            The number of characters, or None if the generation prompt is not in the gap.
        """
        prompt = None if before in (None, START) else self._probes.gap(before, PROMPT)
        found = 0
        if prompt and prompt.strip():
            found = shared(gap, prompt)
            found = found if found in (len(prompt), len(gap)) else self._units.whole(gap, found)
            named = self._role_in(prompt)
            if named is not None and found > named:
                return found
        known = self._prompt_in(gap)
        if known is not None and known > found:
            return known
        if not self.role:
            return self._given(before, gap, found)
        return self._without_header(before, prompt, found, gap)

    def _given(self, before: Kind | None, gap: str, found: int) -> int:
        """The header in a template that never writes a generation prompt: what is before an answer of plain text."""
        plain = self._probes.gap(before, ASSISTANT) if before is not None and self.unprompted else None
        if plain is not None:
            return max(found, self._units.whole(gap, shared(gap, plain)))
        ending = (self._probes.gap(USER, PROMPT) or "").strip()
        if found or before not in (None, START):
            return found
        return gap.rindex(ending) + len(ending) if ending and ending in gap else len(gap.rstrip())

    def _without_header(self, before: Kind | None, prompt: str | None, found: int, gap: str) -> int | None:
        """The header of a turn that the template does not begin anew, such as the second of two answers."""
        if before == START or not gap[found:].strip():
            return len(gap)
        if before is None:
            return None
        again = self._role_in(self._probes.gap(before, ASSISTANT) or "") is not None
        if before[0] == "assistant":
            closed = self.closing(before, ASSISTANT, gap)
            return (len(gap) if not gap[closed:].strip() else None) if again else closed
        if before[0] in ("tool", "function") and found and (not again or self._role_in(prompt or "") is None):
            return found
        return None

    def _prompt_in(self, gap: str) -> int | None:
        """The end of the generation prompt, wherever it is in a gap; the last if there are several."""
        end = self._role_in(gap)
        if end is None:
            return None
        for unit in self.role:
            if not gap.startswith(unit, end):
                break
            end += len(unit)
        return end

    def _role_in(self, text: str) -> int | None:
        """Where the part of the generation prompt that names the assistant begins in a text, last."""
        if not self.role:
            return None
        units = self._units.matches(text)
        for at in reversed(range(len(units))):
            if units[at].group() != self.role[0]:
                continue
            if self._units.tag.fullmatch(self.role[0]) or len(self.role) == 1:
                return units[at].start()
            # a word may be in any text: what is around it must be the same
            before = units[at - 1].group() if at else ""
            after = units[at + 1].group() if at + 1 < len(units) else ""
            if after == self.role[1] and (before == self._lead or not self._units.tag.fullmatch(self._lead)):
                return units[at].start()
        return None

    def _has(self, unit: str, text: str | None) -> bool:
        return text is not None and unit in self._units.of(text)

    @property
    def prompt(self) -> str:
        """The generation prompt after the first user message, for messages to the user."""
        prompt, alone = self._probes.gap(USER, PROMPT) or "", self._probes.gap(USER, END) or ""
        return prompt[len(alone) :] if prompt.startswith(alone) else prompt

    @property
    def role(self) -> list[str]:
        """The units of the generation prompt from the one that names the assistant; empty if there is no prompt."""
        return self._named[1]

    @property
    def _lead(self) -> str:
        """The unit before the one that names the assistant."""
        return self._named[0]

    @cached_property
    def _named(self) -> tuple[str, list[str]]:
        for before, other in ((USER, ASSISTANT), (ASSISTANT, USER)):
            prompt, alone = self._probes.gap(before, PROMPT), self._probes.gap(before, END)
            if not prompt:
                continue
            follow = [self._probes.gap(*pair) for pair in ((before, USER), (other, USER), (before, SYSTEM))]
            befores = [self._probes.gap(kind, ASSISTANT) for kind in (ASSISTANT, START)]
            if alone and alone != prompt:  # it may contain a part of the header
                written = {unit for text in befores for unit in self._units.of(text or "")}
                follow.append("".join(unit for unit in self._units.of(alone) if unit not in written))
            units = self._units.of(prompt)
            header = self._units.of(self._probes.gap(before, ASSISTANT) or "")
            at = self._first_own(header, follow)
            name = header[at] if at is not None and header[at] in units else None
            start = len(units) - 1 - units[::-1].index(name) if name is not None else self._first_own(units, follow)
            if start is None:
                continue
            # without an option for it, a generation prompt is what is written before any answer
            befores.append(self._probes.gap(other, END))
            if prompt != alone or any(self._has(units[start], text) for text in befores):
                return units[start - 1] if start else "", units[start:]
        return "", []

    def _first_own(self, units: list[str], others: list[str | None]) -> int | None:
        """The first unit, other than whitespace, that is in none of some other texts."""
        known = {unit for text in others if text is not None for unit in self._units.of(text)}
        return next((at for at, unit in enumerate(units) if not unit.isspace() and unit not in known), None)


def _make_room(kept: dict[Any, Any]) -> None:
    if len(kept) >= KEPT:
        kept.clear()
