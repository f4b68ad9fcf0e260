"""Where the turns of a conversation lie in its rendering, for any chat template: found by rendering, never guessed.

A turn begins where the generation prompt before it ends, as far as the rendering shares that prompt: what inference
gives need not be learnt. It ends with the token that closes it, without the white space behind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from sftkit.api import RowError
from sftkit_plugins.formats.messages import REASONING
from sftkit_plugins.formats.rendering import FIX, Messages, Region, Rendering

# What is put in place of a content to see where it lies. A private-use character begins and ends it, which no data is
# likely to hold and no template strips; another than those of a skeleton, whose turns are found here too.
_PROBE = "\ue0f2{}\ue0f3"
# What a header or a closing is made of: a tag as <|im_start|> or [/INST], a word, a character.
_UNIT = re.compile(r"<[^<>\s]{1,64}>|\[/?[A-Z_]+\]|\w+|\s|.", re.DOTALL)
_TAG = re.compile(r"<[^<>\s]{1,64}>|\[/?[A-Z_]+\]")
_THOUGHT_END = "</think>"
_WORD = re.compile(r"\w+")


class Turns:
    """Finds the turns of one rendered conversation.

    Args:
        rendering: renders the row.
        messages: the whole conversation.
        text: the whole as it is rendered.
    """

    def __init__(self, rendering: Rendering, messages: Messages, text: str) -> None:
        self.text = text
        self._rendering, self._messages = rendering, messages
        self._openings: dict[int, tuple[str, str]] = {}

    def region(self, number: int) -> Region:
        """What a model that writes this message has to write: its content and closing token.

        Raises:
            RowError: if rendering does not tell where it begins or ends.
        """
        start = self.start(number)
        end = self._end(number, start)
        if end < start:
            raise self._refusal(number, "its end comes before its beginning")
        return start, end

    def start(self, number: int) -> int:
        """Where a message begins: an assistant's behind the generation prompt, others' where their content does.

        Raises:
            RowError: if rendering does not tell.
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
                raise self._refusal(number, f"the generation prompt is {header!r}, and the turn begins with {found!r}")
            return len(alone) + common
        return self._rewritten_start(number, header)

    def check_rendered(self, numbers: Iterable[int]) -> None:
        """That nothing of what the messages have to say is left out by the template.

        An earlier turn's reasoning may be: many templates drop it once the user has answered.

        Raises:
            RowError: naming the turn and what is left out.
        """
        numbers = [number for number in numbers if self._messages[number].get("content", "").strip()]
        probe = self._try({number: {"content": _PROBE.format(number)} for number in numbers}) if numbers else None
        for number in numbers:
            if probe is not None and _PROBE.format(number) not in probe:
                raise self._left_out(number, "content")
        for number, message in enumerate(self._messages):
            for keys in (("tool_calls",), REASONING):
                given = [key for key in keys if message["role"] == "assistant" and message.get(key)]
                if given and not self._matter(number, dict.fromkeys(given)):
                    raise self._left_out(number, given[0])
            content = message.get("content", "")
            if message["role"] == "assistant" and _THOUGHT_END in content:
                answer = content[content.rindex(_THOUGHT_END) + len(_THOUGHT_END) :]
                if not self._matter(number, {"content": answer}):
                    raise self._left_out(number, "thinking in the content")

    def _matter(self, number: int, without: dict[str, Any]) -> bool:
        """Whether a message that is the last is rendered otherwise with these keys, None for without them."""
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
        raise self._refusal(number, "its content is not found in the rendering as it is")

    def _header(self, number: int, alone: str) -> str:
        """What the generation prompt adds behind the first user message, if the turn begins so; else nothing.

        Some templates have no generation prompt behind a tool's result, and write the turn as any other.
        """
        first = next((at for at, message in enumerate(self._messages) if message["role"] == "user"), number)
        if first < number:
            shorter, prompt = self._before(first + 1)
            header = prompt[_extent(shorter, prompt) :]
            if header and self.text.startswith(header[: _core(header)], len(alone)):
                return header
        return ""

    def _rewritten_start(self, number: int, header: str) -> int:
        """Where the turn begins if the messages before it are rendered otherwise than alone.

        Looked for between the end of the message before and the first character that changes with the turn's own.
        """
        low = 0
        if number:
            behind = self._behind(number - 1)
            if behind is None or not self.text.endswith(behind):
                raise self._refusal(number, "the messages before it are rendered otherwise than alone")
            low = len(self.text) - len(behind)
        others: dict[str, Any] = dict.fromkeys(("tool_calls", *REASONING))
        probe = self._try({number: {**others, "content": _PROBE.format(number)}})
        window = self.text[low : shared(self.text, probe)] if probe is not None else ""
        units = [unit.end() for unit in _UNIT.finditer(header)]
        for length in reversed(units):
            at = window.find(header[:length])
            if at >= 0 and length >= _core(header):
                return low + at + length
        raise self._refusal(number, f"the generation prompt {header!r} is not found before it")

    def _end(self, number: int, start: int) -> int:
        if number == len(self._messages) - 1:
            return self._last_end(number, start)
        through = self._try({}, self._messages[: number + 1])
        if through is not None and self.text.startswith(through) and start <= len(through):
            self._check_call_closed(number, start, through)
            return self._trimmed(number, start, len(through))
        behind = self._behind(number)
        as_last = self._behind(number, self._messages[: number + 1])
        if behind is None or as_last is None:
            raise self._refusal(number, "rendered alone it is another text than in the whole")
        closing = self._closing(number, behind, as_last)
        rest = behind[closing:]
        end = len(self.text) - len(rest)
        closer = next((unit.group() for unit in reversed(list(_UNIT.finditer(behind[:closing])))), "")
        if end < start or not self.text.endswith(rest) or not self.text[start:end].endswith(closer):
            raise self._refusal(number, "what follows its content is not found in the whole")
        return end

    def _check_call_closed(self, number: int, start: int, through: str) -> None:
        """That a tag behind a tool call is not also the one that the tool's result begins with."""
        if self._messages[number].get("tool_calls") and self._messages[number + 1]["role"] == "tool":
            last = [tag.group() for tag in _TAG.finditer(through, start)][-1:]
            behind = self.text[len(through) :]
            if last and through.endswith(last[0]) and behind and not behind[0].isspace() and not _TAG.match(behind):
                raise self._refusal(number, f"{last[0]!r} behind the tool call may be its own or the tool's")

    def _last_end(self, number: int, start: int) -> int:
        """The end of the conversation, unless the template writes more behind it than the turn's closing."""
        alone, prompt = self._before(number)
        if alone == prompt:
            answered = self._try({}, [*self._messages, {"role": "user", "content": _PROBE.format(0)}])
            if answered is None or not answered.startswith(self.text):
                raise self._refusal(number, "the template knows no generation prompt, and does not end with the turn")
        return self._trimmed(number, start, len(self.text))

    def _closing(self, number: int, behind: str, as_last: str) -> int:
        """How many characters behind a content close its turn, given what follows it here and when it is last."""
        alone, prompt = self._before(number)
        of_whole = alone[_extent(prompt, alone) :]  # as an EOS at the end of every conversation
        if of_whole and as_last.endswith(of_whole):
            as_last = as_last[: -len(of_whole)]
        if behind.startswith(as_last.rstrip()):
            return len(as_last.rstrip()) or len(as_last)
        common = whole_units(as_last, shared(as_last, behind))
        if as_last[:common].strip():
            raise self._refusal(number, f"it is closed by {as_last[common:]!r} if it is last, and not in the whole")
        closer = _TAG.match(behind, common)
        if not closer or not _TAG.match(as_last, common):
            raise self._refusal(number, "it is closed otherwise than if it were last")
        after = self._messages[number + 1]["role"]
        others = [role for role in ("assistant", "user", "tool", "system") if role != after]
        turns = self._messages[: number + 1]
        probes = [self._behind(number, [*turns, {"role": role, "content": "."}]) for role in others]
        answers = [probe for probe in probes if probe is not None and probe.strip() != as_last.strip()]
        if not answers or not all(probe.startswith(closer.group(), common) for probe in answers):
            raise self._refusal(number, f"{closer.group()!r} behind it may be its own or the next message's")
        return closer.end()

    def _before(self, number: int) -> tuple[str, str]:
        """The messages before one, rendered alone and with the generation prompt."""
        if number not in self._openings:
            before = self._messages[:number]
            self._openings[number] = self._rendering.text(before), self._rendering.text(before, prompt=True)
        return self._openings[number]

    def _behind(self, number: int, messages: Messages | None = None) -> str | None:
        """What is rendered behind the content of a message; None where a stand-in for it is not rendered."""
        probe = self._try({number: {"content": _PROBE.format(number)}}, messages)
        if probe is None or _PROBE.format(number) not in probe:
            return None
        return probe[probe.rindex(_PROBE.format(number)) + len(_PROBE.format(number)) :]

    def _trimmed(self, number: int, start: int, end: int) -> int:
        return turn_end(self.text, start, end, self._messages[number])

    def _try(self, changes: dict[int, dict[str, Any]], messages: Messages | None = None) -> str | None:
        """The messages rendered with some keys set, or removed by None; None where the template refuses them."""
        messages = self._messages if messages is None else messages
        changed = [{**message, **changes.get(number, {})} for number, message in enumerate(messages)]
        try:
            return self._rendering.text([{k: v for k, v in message.items() if v is not None} for message in changed])
        except RowError:
            return None

    def _left_out(self, number: int, key: str) -> RowError:
        what = f"the chat template leaves out the {key} of message {number + 1}"
        return RowError(self._rendering.index, what, "use a template that renders it, or take it out of the data")

    def _refusal(self, number: int, why: str) -> RowError:
        what = f"the chat template does not let the text of message {number + 1} be told apart: {why}"
        return RowError(self._rendering.index, what, FIX)


def turn_end(text: str, start: int, end: int, message: dict[str, Any]) -> int:
    """Where a turn's closing token ends.

    White space that the template adds behind it is not the assistant's. Where the turn has no closing token, white
    space is what closes it, and stays.
    """
    turn = text[start:end].rstrip()
    content = message.get("content", "").rstrip()
    return end if content and turn.endswith(content) else start + len(turn)


def shared(first: str, second: str) -> int:
    """How many characters two texts begin with in common."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _extent(alone: str, prompt: str) -> int:
    """Where a generation prompt begins that is added to what is rendered alone, perhaps in the place of an end."""
    known = shared(alone, prompt)
    return known if known == len(alone) else whole_units(prompt, known)


def whole_units(text: str, length: int) -> int:
    """The length cut back to where no tag or word of the text is split."""
    end = 0
    for unit in _UNIT.finditer(text):
        if unit.end() > length:
            break
        end = unit.end()
    return end


def _core(header: str) -> int:
    """How much of a header must be there for it to be that header: up to its first word, which names the role."""
    tags = [(tag.start(), tag.end()) for tag in _TAG.finditer(header)]
    for word in _WORD.finditer(header):
        if not any(start < word.start() < end for start, end in tags):
            return word.end()
    return tags[0][1] if tags else len(header)
