"""Where the turns of a conversation are in the rendered text, for any chat template: found by rendering, not guessed.

A turn begins where the generation prompt before it ends, as far as the rendered text contains that prompt: the model
does not have to learn what it is given at inference. It ends with the token that closes it, without whitespace after.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from sftkit.api import RowError
from sftkit_plugins.formats.messages import REASONING
from sftkit_plugins.formats.rendering import FIX, Messages, Region, Rendering

# Replaces a content to find its position. It begins and ends with private-use characters, which data hardly ever
# contains and templates do not strip. They differ from those of a skeleton, whose turns are found here too.
_PROBE = "\ue0f2{}\ue0f3"
# The units of a header or a closing: a tag such as <|im_start|> or [/INST], a word, or a character.
_UNIT = re.compile(r"<[^<>\s]{1,64}>|\[/?[A-Z_]+\]|\w+|\s|.", re.DOTALL)
_TAG = re.compile(r"<[^<>\s]{1,64}>|\[/?[A-Z_]+\]")
_THOUGHT_END = "</think>"
_WORD = re.compile(r"\w+")


class Turns:
    """Finds the turns of one rendered conversation.

    Args:
        rendering: renders the row.
        messages: the whole conversation.
        text: the rendered conversation.
    """

    def __init__(self, rendering: Rendering, messages: Messages, text: str) -> None:
        self.text = text
        self._rendering, self._messages = rendering, messages
        self._openings: dict[int, tuple[str, str]] = {}

    def region(self, number: int) -> Region:
        """What a model has to write to write this message: its content and closing token.

        Raises:
            RowError: if rendering does not reveal where it begins or ends.
        """
        start = self.start(number)
        end = self._end(number, start)
        if end < start:
            raise self._unclear(number, "its end comes before its beginning")
        return start, end

    def start(self, number: int) -> int:
        """Where a message begins: after the generation prompt for the assistant, else where the content begins.

        Raises:
            RowError: if rendering does not reveal it.
        """
        message = self._messages[number]
        if message["role"] != "assistant":
            return self._content_start(number)
        alone, prompt = self._before(number)
        if self.text.startswith(prompt) and prompt != alone:
            return len(prompt)
        header = prompt[_extent(alone, prompt) :] or self._header(number, alone)
        if self.text.startswith(alone):
            common = whole_units(header, shared(self.text[len(alone) :], header))
            if common < _core(header):
                found = self.text[len(alone) : len(alone) + 24]
                raise self._unclear(number, f"the generation prompt is {header!r}, but the turn begins with {found!r}")
            return len(alone) + common
        return self._rewritten_start(number, header)

    def check_rendered(self, numbers: Iterable[int]) -> None:
        """Check that the template leaves out no part of the messages.

        It may leave out the reasoning of earlier turns: many templates drop it once the user has answered.

        Raises:
            RowError: with the turn and what is left out.
        """
        numbers = [number for number in numbers if self._messages[number].get("content", "").strip()]
        probe = self._try({number: {"content": _PROBE.format(number)} for number in numbers}) if numbers else None
        for number in numbers:
            if probe is not None and _PROBE.format(number) not in probe:
                raise self._left_out(number, "content")
        for number, message in enumerate(self._messages):
            for keys in (("tool_calls",), REASONING):
                present = [key for key in keys if message["role"] == "assistant" and message.get(key)]
                if present and not self._matter(number, dict.fromkeys(present)):
                    raise self._left_out(number, present[0])
            content = message.get("content", "")
            if message["role"] == "assistant" and _THOUGHT_END in content:
                answer = content[content.rindex(_THOUGHT_END) + len(_THOUGHT_END) :]
                if not self._matter(number, {"content": answer}):
                    raise self._left_out(number, "thinking in the content")

    def _matter(self, number: int, without: dict[str, Any]) -> bool:
        """Whether changing keys of a message (None removes a key) changes its rendering as the last message."""
        messages = self._messages[: number + 1]
        whole = self._try({}, messages)
        content = {"content": messages[number].get("content", "")}
        return whole is None or whole != self._try({number: content | without}, messages)

    def _content_start(self, number: int) -> int:
        content = self._messages[number].get("content", "")
        probe = self._try({number: {"content": _PROBE.format(number)}})
        if probe is not None and content.strip():
            start = shared(self.text, probe)
            rendered = self.text.startswith((content, content.strip()), start)
            if rendered and probe.startswith(_PROBE.format(number), start):
                return start
        raise self._unclear(number, "its content is not in the rendered text unchanged")

    def _header(self, number: int, alone: str) -> str:
        """What the generation prompt adds after the first user message, if the turn begins with it; else nothing.

        Some templates have no generation prompt after the result of a tool, but write the turn like any other.
        """
        first = next((at for at, message in enumerate(self._messages) if message["role"] == "user"), number)
        if first < number:
            shorter, prompt = self._before(first + 1)
            header = prompt[_extent(shorter, prompt) :]
            if header and self.text.startswith(header[: _core(header)], len(alone)):
                return header
        return ""

    def _rewritten_start(self, number: int, header: str) -> int:
        """Where the turn begins if the messages before it are rendered differently on their own.

        It is between the end of the previous message and the first character that depends on the turn itself.
        """
        low = 0
        if number:
            after = self._after(number - 1)
            if after is None or not self.text.endswith(after):
                raise self._unclear(number, "the messages before it are rendered differently on their own")
            low = len(self.text) - len(after)
        others: dict[str, Any] = dict.fromkeys(("tool_calls", *REASONING))
        probe = self._try({number: {**others, "content": _PROBE.format(number)}})
        window = self.text[low : shared(self.text, probe)] if probe is not None else ""
        units = [unit.end() for unit in _UNIT.finditer(header)]
        for length in reversed(units):
            at = window.find(header[:length])
            if at >= 0 and length >= _core(header):
                return low + at + length
        raise self._unclear(number, f"the generation prompt {header!r} is not before it")

    def _end(self, number: int, start: int) -> int:
        if number == len(self._messages) - 1:
            return self._last_end(number, start)
        through = self._try({}, self._messages[: number + 1])
        if through is not None and self.text.startswith(through) and start <= len(through):
            self._check_call_closed(number, start, through)
            return self._trimmed(number, start, len(through))
        after = self._after(number)
        as_last = self._after(number, self._messages[: number + 1])
        if after is None or as_last is None:
            raise self._unclear(number, "the template does not render it unchanged")
        closing = self._closing(number, after, as_last)
        rest = after[closing:]
        end = len(self.text) - len(rest)
        closer = next((unit.group() for unit in reversed(list(_UNIT.finditer(after[:closing])))), "")
        if end < start or not self.text.endswith(rest) or not self.text[start:end].endswith(closer):
            raise self._unclear(number, "what follows its content is not in the rendered conversation")
        return end

    def _check_call_closed(self, number: int, start: int, through: str) -> None:
        """Check that a tag after a tool call cannot be the start of the tool's result."""
        if self._messages[number].get("tool_calls") and self._messages[number + 1]["role"] == "tool":
            last = [tag.group() for tag in _TAG.finditer(through, start)][-1:]
            after = self.text[len(through) :]
            if last and through.endswith(last[0]) and after and not after[0].isspace() and not _TAG.match(after):
                what = f"{last[0]!r} after the tool call may belong to the call or to the tool's result"
                raise self._unclear(number, what)

    def _last_end(self, number: int, start: int) -> int:
        """The end of the conversation, unless the template writes more after it than the closing of the turn."""
        alone, prompt = self._before(number)
        if alone == prompt:
            answered = self._try({}, [*self._messages, {"role": "user", "content": _PROBE.format(0)}])
            if answered is None or not answered.startswith(self.text):
                raise self._unclear(
                    number, "the template has no generation prompt, and its text does not end with the turn"
                )
        return self._trimmed(number, start, len(self.text))

    def _closing(self, number: int, following: str, as_last: str) -> int:
        """Number of characters after a content that close its turn.

        Args:
            number: number of the message.
            following: the text after its content in this conversation.
            as_last: the text after its content if the conversation ended with it.
        """
        alone, prompt = self._before(number)
        of_whole = alone[_extent(prompt, alone) :]  # for example an EOS at the end of each conversation
        if of_whole and as_last.endswith(of_whole):
            as_last = as_last[: -len(of_whole)]
        if following.startswith(as_last.rstrip()):
            return len(as_last.rstrip()) or len(as_last)
        common = whole_units(as_last, shared(as_last, following))
        if as_last[:common].strip():
            raise self._unclear(number, f"as the last message it is closed by {as_last[common:]!r}, but not here")
        closer = _TAG.match(following, common)
        if not closer or not _TAG.match(as_last, common):
            raise self._unclear(number, "it is closed differently than as the last message")
        next_role = self._messages[number + 1]["role"]
        others = [role for role in ("assistant", "user", "tool", "system") if role != next_role]
        turns = self._messages[: number + 1]
        probes = [self._after(number, [*turns, {"role": role, "content": "."}]) for role in others]
        answers = [probe for probe in probes if probe is not None and probe.strip() != as_last.strip()]
        if not answers or not all(probe.startswith(closer.group(), common) for probe in answers):
            raise self._unclear(number, f"{closer.group()!r} after it may belong to it or to the next message")
        return closer.end()

    def _before(self, number: int) -> tuple[str, str]:
        """The messages before one, rendered without and with the generation prompt."""
        if number not in self._openings:
            before = self._messages[:number]
            self._openings[number] = self._rendering.text(before), self._rendering.text(before, prompt=True)
        return self._openings[number]

    def _after(self, number: int, messages: Messages | None = None) -> str | None:
        """The rendered text after the content of a message; None if the template does not render a probe."""
        probe = self._try({number: {"content": _PROBE.format(number)}}, messages)
        if probe is None or _PROBE.format(number) not in probe:
            return None
        return probe[probe.rindex(_PROBE.format(number)) + len(_PROBE.format(number)) :]

    def _trimmed(self, number: int, start: int, end: int) -> int:
        return turn_end(self.text, start, end, self._messages[number])

    def _try(self, changes: dict[int, dict[str, Any]], messages: Messages | None = None) -> str | None:
        """The messages rendered with some keys changed (None removes a key); None if the template rejects them."""
        messages = self._messages if messages is None else messages
        changed = [{**message, **changes.get(number, {})} for number, message in enumerate(messages)]
        try:
            return self._rendering.text([{k: v for k, v in message.items() if v is not None} for message in changed])
        except RowError:
            return None

    def _left_out(self, number: int, key: str) -> RowError:
        what = f"the chat template leaves out the {key} of message {number + 1}"
        return RowError(self._rendering.index, what, "use a template that renders it, or remove it from the data")

    def _unclear(self, number: int, why: str) -> RowError:
        what = f"the text of message {number + 1} cannot be located in the chat template's output: {why}"
        return RowError(self._rendering.index, what, FIX)


def turn_end(text: str, start: int, end: int, message: dict[str, Any]) -> int:
    """Where the closing token of a turn ends.

    Whitespace that the template adds after it does not belong to the turn. If the turn has no closing token, whitespace
    closes it and is kept.
    """
    turn = text[start:end].rstrip()
    content = message.get("content", "").rstrip()
    return end if content and turn.endswith(content) else start + len(turn)


def shared(first: str, second: str) -> int:
    """Length of the common prefix of two texts."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _extent(alone: str, prompt: str) -> int:
    """Where the generation prompt begins in a text that ends with it; it may replace the end of ``alone``."""
    known = shared(alone, prompt)
    return known if known == len(alone) else whole_units(prompt, known)


def whole_units(text: str, length: int) -> int:
    """The length, reduced so that no tag or word of the text is split."""
    end = 0
    for unit in _UNIT.finditer(text):
        if unit.end() > length:
            break
        end = unit.end()
    return end


def _core(header: str) -> int:
    """Length of the part that identifies a header: up to the end of its first word, which names the role."""
    tags = [(tag.start(), tag.end()) for tag in _TAG.finditer(header)]
    for word in _WORD.finditer(header):
        if not any(start < word.start() < end for start, end in tags):
            return word.end()
    return tags[0][1] if tags else len(header)
