"""Takes apart what a template writes between two messages: the closing of the one and the header of the next.

The evidence is what it writes in the same place in small conversations, with other messages before or after.
"""

from __future__ import annotations

import re
from functools import cached_property

from sftkit_plugins.formats.probes import (
    ASSISTANT,
    END,
    PROMPT,
    START,
    SYSTEM,
    TOOL,
    USER,
    Kind,
    Probes,
)

_TAG_FORMS = r"<[^<>\s]{1,64}>|\[/?[A-Z_]+\]|\[\|[^\[\]\s]{1,64}\|\]"


class Gaps:
    """Finds closings and headers in the gaps of one template.

    Args:
        probes: renders the small conversations.
    """

    def __init__(self, probes: Probes) -> None:
        self._probes = probes
        tokens = probes.rendering.special_tokens
        special = {text for token in tokens.values() for text in (token if isinstance(token, list) else [token])}
        special = {str(token) for token in special if str(token).strip()}
        forms = "|".join([*map(re.escape, sorted(special, key=len, reverse=True)), _TAG_FORMS])
        self._tag = re.compile(forms)
        # the units of a header or a closing: a tag such as <|im_start|> or [/INST], a word, or a character
        self._unit = re.compile(rf"{forms}|\w+|.", re.DOTALL)
        self._begins = str(tokens.get("bos_token") or "")

    # Closings

    def closing(self, kind: Kind, after: Kind, gap: str) -> int:
        """How much of a gap closes the message before it, including whitespace that may follow.

        Args:
            kind: the kind of the message before the gap.
            after: the kind of the message after the gap, or `END`.
            gap: the text.
        """
        if after == END and not self.always_prompts:
            return len(gap)
        if not kind[3]:
            return self._closing(kind, after, gap)
        # what follows the last argument depends on the argument; what closes the call and the turn does not
        known = self._probes.gap(kind, after)
        closed = known[: self._closing(kind, after, known)].rstrip() if known else ""
        if gap.startswith(closed) and closed:
            return len(closed)
        for tag in self._tag.finditer(closed):
            at = gap.find(closed[tag.start() :])
            if at >= 0:
                return at + len(closed) - tag.start()
        return self._closing(kind, after, gap)

    def _closing(self, kind: Kind, after: Kind, gap: str) -> int:
        last = self._probes.gap(kind, END)
        if last is not None and not self.always_prompts:
            closed = self._without_ending(last).rstrip()
            if closed and gap.startswith(closed):
                return len(closed)
        return self._bounded(kind, after, gap)

    def _bounded(self, kind: Kind, after: Kind, gap: str) -> int:
        """The closing is what stays if the next message changes; the header is what stays if the previous one does."""
        answers = after in (END, PROMPT) or after[0] == "assistant"
        others = [self._probes.gap(kind, other) for other in ((USER, SYSTEM) if answers else (ASSISTANT, PROMPT))]
        high = self.whole_units(gap, max((shared(gap, other) for other in others if other is not None), default=0))
        befores = [before for before in (START, SYSTEM, USER, ASSISTANT) if before[0] != kind[0]]
        gaps = [self._probes.gap(before, ASSISTANT if answers else after) for before in befores]
        ends = [len(gap) - self._shared_end(gap, other) for other in gaps if other]
        low = max((end for end in ends if gap[end:].strip()), default=0)
        if answers and self.role:
            named = self._unit_in(self.role[0], gap)
            low, high = (low, high) if named is None else (min(low, named), min(high, named))
        if low >= high:
            return low
        opener = next((tag.start() for tag in self._tag.finditer(gap, low, high) if tag.group() == self.opener), None)
        if opener is not None:
            return opener
        tags = [tag.end() for tag in self._tag.finditer(gap, 0, high)]
        if tags and tags[-1] >= low:
            return tags[-1]
        return low if gap[:low].strip() else len(gap[:high]) - len(gap[:high].lstrip())

    def _without_ending(self, last: str) -> str:
        """The end of a conversation without what is only written there, such as an EOS after all messages."""
        alone, prompt = self._probes.gap(USER, END), self._probes.gap(USER, PROMPT)
        if alone is None or prompt is None or alone == prompt:
            return last
        ending = alone[self.whole_units(alone, shared(alone, prompt)) :]
        return last[: -len(ending)] if ending.strip() and last.endswith(ending) else last

    @cached_property
    def always_prompts(self) -> bool:
        """Whether the template writes a generation prompt even if none is asked for."""
        return bool(self.role) and all(
            self._unit_in(self.role[0], self._probes.gap(before, END) or "") is not None for before in (USER, ASSISTANT)
        )

    @cached_property
    def opener(self) -> str | None:
        """The tag with which the first message begins, if such a tag is also between messages."""
        inner = [self._probes.gap(*pair) or "" for pair in ((USER, ASSISTANT), (ASSISTANT, USER))]
        for first in (SYSTEM, USER):
            for tag in self._tag.finditer(self._probes.gap(START, first) or ""):
                if tag.group() != self._begins and any(tag.group() in gap for gap in inner):
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
        prompt = None if before is None else self._probes.gap(before, PROMPT)
        found = 0
        if prompt and prompt.strip():
            found = shared(gap, prompt)
            found = found if found in (len(prompt), len(gap)) else self.whole_units(gap, found)
            if self._names_role(gap[:found]):
                return found
        known = self._prompt_in(gap[found:])
        if known is not None:
            return found + known
        if not self.role:
            return found or self._given(before, gap)
        return self._without_header(before, prompt, found, gap)

    def _given(self, before: Kind | None, gap: str) -> int:
        """The header in a template that never writes a generation prompt."""
        ending = (self._probes.gap(USER, PROMPT) or "").strip()
        if before is not None and before != START:
            return 0
        return gap.rindex(ending) + len(ending) if ending and ending in gap else len(gap)

    def _without_header(self, before: Kind | None, prompt: str | None, found: int, gap: str) -> int | None:
        """The header of a turn that the template does not begin anew, such as the second of two answers."""
        if before == START or not gap[found:].strip():
            return len(gap)
        if before is None:
            return None
        if before[0] == "assistant" and not gap[self.closing(before, ASSISTANT, gap) :].strip():
            return len(gap)
        if before[0] in ("tool", "function") and found and not self._names_role(prompt or ""):
            return found
        return None

    def _names_role(self, header: str) -> bool:
        """Whether a text contains the part of the generation prompt that names the assistant."""
        return bool(self.role) and self._unit_in(self.role[0], header) is not None

    def _prompt_in(self, gap: str) -> int | None:
        """The end of the generation prompt, wherever it is in a gap; the last if there are several."""
        if not self.role:
            return None
        start = self._unit_in(self.role[0], gap)
        if start is None:
            return None
        end = start
        for unit in self.role:
            if not gap.startswith(unit, end):
                break
            end += len(unit)
        return end

    def _unit_in(self, unit: str, text: str) -> int | None:
        found = [match.start() for match in self._unit.finditer(text) if match.group() == unit]
        return found[-1] if found else None

    @property
    def prompt(self) -> str:
        """The generation prompt after the first user message, for messages to the user."""
        prompt, alone = self._probes.gap(USER, PROMPT) or "", self._probes.gap(USER, END) or ""
        return prompt[len(alone) :] if prompt.startswith(alone) else prompt

    @cached_property
    def role(self) -> list[str]:
        """The units of the generation prompt from the one that names the assistant; empty if there is no prompt."""
        for before, other in ((USER, ASSISTANT), (ASSISTANT, USER)):
            prompt, alone = self._probes.gap(before, PROMPT), self._probes.gap(before, END)
            if not prompt:
                continue
            others = [self._probes.gap(*pair) for pair in ((before, USER), (before, SYSTEM), (other, USER))]
            known = max((shared(prompt, text) for text in others if text is not None), default=0)
            units = self._unit.findall(prompt[self.whole_units(prompt, known) :])
            while units and units[0].isspace():
                units.pop(0)
            # without an option for it, a generation prompt is what is written after answers too
            if units and (prompt != alone or self._unit_in(units[0], self._probes.gap(other, END) or "") is not None):
                return units
        return []

    # Texts

    def whole_units(self, text: str, length: int) -> int:
        """The length, reduced so that no tag or word of the text is split."""
        end = 0
        for unit in self._unit.finditer(text):
            if unit.end() > length:
                break
            end = unit.end()
        return end

    def _shared_end(self, first: str, second: str) -> int:
        """Length of the common end of two texts, without a part of a tag or word."""
        length = shared(first[::-1], second[::-1])
        if length == len(first):
            return length
        cut = len(first) - length
        return len(first) - next((unit.start() for unit in self._unit.finditer(first) if unit.start() >= cut), len(first))


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
