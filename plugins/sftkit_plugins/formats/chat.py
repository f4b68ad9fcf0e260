"""Conversations rendered with the tokenizer's chat template, and which of their characters are trained."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

from sftkit.config.models import Loss
from sftkit.data.documents import Columns, Document, Formatter, RowError, Skipped, Span
from sftkit_plugins.formats.messages import read_messages, read_tools
from sftkit_plugins.formats.skeleton import Skeleton, stand_ins

Region = tuple[int, int]
"""Start and end, in characters of the rendered conversation."""
Messages = list[dict[str, Any]]

_PLAIN = {"role", "content"}
_MARKER = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
_MEND = "use a chat template with {% generation %} markers (-p chatml has them), or data.loss: all"


@dataclass(frozen=True, kw_only=True)
class Chat(Formatter):
    """Conversations in one column, or as a prompt and its completion in two.

    What the assistant wrote is found exactly: by the template's ``{% generation %}`` markers, else by rendering the
    conversation up to each assistant turn and checking that this is how the whole begins.

    Args:
        columns: the column of messages, or those of the prompt and the completion.
        template: the Jinja chat template, or several by name, of which ``tool_use`` is for rows with tools.
        special_tokens: the tokenizer's, by name, for the template.
        loss: ``assistant`` (content and closing token of each assistant turn), ``completion`` or ``all``.
        has_tools: whether the data has a column ``tools``.
        turns: which assistant turns are trained; ``train`` or ``weight`` on a message goes before it.
    """

    columns: tuple[str, ...]
    template: str | dict[str, str]
    special_tokens: Mapping[str, Any]
    loss: Loss = "assistant"
    has_tools: bool = False
    turns: Literal["all", "last"] = "all"
    _skeletons: dict[Any, Skeleton | None] = field(default_factory=dict, repr=False, compare=False)

    @property
    def adds_special_tokens(self) -> bool:
        """False: the template writes them."""
        return False

    def __getstate__(self) -> dict[str, Any]:
        """Without the skeletons, so that a used formatter pickles to the same bytes as a fresh one."""
        return {**self.__dict__, "_skeletons": {}}

    def __call__(self, rows: Columns) -> list[Document | Skipped]:
        """The rendered conversations as spans.

        Raises:
            RowError: for what is no conversation, what the template refuses, or where it cannot be told which
                characters are the assistant's.
        """
        length = len(rows[self.columns[0]])
        return [self._document(rows, index) for index in range(length)]

    def _document(self, rows: Columns, index: int) -> Document | Skipped:
        parts = [read_messages(rows[column][index], index, column) for column in self.columns]
        messages: Messages = list(chain.from_iterable(parts))
        if not messages:
            return Skipped("empty conversation")
        messages, trained = self._trained_turns(messages, index)
        if self.loss == "assistant" and not trained:
            return Skipped("no assistant turn")
        tools = read_tools(rows["tools"][index], index) if self.has_tools else None
        rendering = _Rendering(self._template(tools), self.special_tokens, tools, index)
        if self.loss == "all":
            return (Span(rendering.text(messages), True),)
        if self.loss == "completion":
            text = rendering.text(messages)
            start = rendering.beginning(text, messages, len(parts[0]), prompt=True)
            return split(text, [(start, _turn_end(text, start, len(text), messages[-1]))])
        text, regions, turns = self._assistant(rendering, messages, trained)
        return split(text, [region for region, turn in zip(regions, turns, strict=True) if turn in trained])

    def _trained_turns(self, messages: Messages, index: int) -> tuple[Messages, set[int]]:
        """The messages without the keys ``train`` and ``weight``, and the numbers of those that are trained."""
        assistant = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        trained = set(assistant[-1:] if self.turns == "last" else assistant)
        if not any("train" in message or "weight" in message for message in messages):
            return messages, trained
        for number, message in enumerate(messages):
            for key in ("train", "weight"):
                flag = message.get(key)
                if flag is None:
                    continue
                if flag not in (0, 1):
                    what = f"message {number + 1}: {key} is {flag!r}"
                    raise RowError(index, what, "a message is trained (true, 1) or not (false, 0)")
                if flag and message["role"] != "assistant":
                    what = f"message {number + 1} ({message['role']}) is to be trained"
                    raise RowError(index, what, "only assistant messages can be trained")
                trained = trained | {number} if flag else trained - {number}
        plain = [{k: v for k, v in message.items() if k not in ("train", "weight")} for message in messages]
        return plain, trained

    def _assistant(
        self, rendering: _Rendering, messages: Messages, trained: set[int]
    ) -> tuple[str, list[Region], Sequence[int]]:
        """The whole, the regions that assistant turns are in, and the message whose turn each is."""
        text = rendering.text(messages)
        plain = rendering.tools is None and all(message.keys() == _PLAIN for message in messages)
        if plain:
            skeleton = self._skeleton(rendering, messages)
            found = skeleton.find(text, [message["content"] for message in messages]) if skeleton else None
            if skeleton is not None and found is not None:
                return text, found, skeleton.turns
        assistant = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        if _MARKER.search(rendering.template):
            text, regions = rendering.marked(messages)
            if len(regions) == len(assistant):
                return text, regions, assistant
            if trained == set(assistant):  # then it does not matter whose each is
                return text, regions, assistant[:1] * len(regions)
        return *rendering.assistant_turns(messages), assistant

    def _skeleton(self, rendering: _Rendering, messages: Messages) -> Skeleton | None:
        key = (rendering.template, *(message["role"] for message in messages))
        if key not in self._skeletons:
            marked = _MARKER.search(rendering.template)
            masked = stand_ins(messages)
            try:
                whole = rendering.marked(masked) if marked else rendering.assistant_turns(masked)
                self._skeletons[key] = Skeleton.of(*whole)
            except RowError:  # found out on the row itself, which tells it better
                self._skeletons[key] = None
        return self._skeletons[key]

    def _template(self, tools: list[dict[str, Any]] | None) -> str:
        if isinstance(self.template, str):
            return self.template
        return self.template["tool_use" if tools and "tool_use" in self.template else "default"]


@dataclass(frozen=True)
class _Rendering:
    """Renders one row's messages and finds places in the result."""

    template: str
    special_tokens: Mapping[str, Any]
    tools: list[dict[str, Any]] | None
    index: int

    def text(self, messages: Messages, *, prompt: bool = False) -> str:
        """The rendered messages, with ``prompt`` up to where the assistant would go on."""
        return self._render(messages, prompt=prompt)[0]

    def marked(self, messages: Messages) -> tuple[str, list[Region]]:
        """The whole, and what its template's generation markers enclose."""
        text, regions = self._render(messages, masked=True)
        ends = [0, *(end for _, end in regions)]
        in_order = all(before <= start <= end <= len(text) for before, (start, end) in zip(ends, regions, strict=False))
        if not in_order or not _covers_content(text, regions, messages):
            what = "the chat template's {% generation %} markers do not enclose what the assistant wrote"
            raise RowError(self.index, what, "put the markers around it, outside of any macro, or use -p chatml")
        return text, regions

    def assistant_turns(self, messages: Messages) -> tuple[str, list[Region]]:
        """The whole, and the assistant turns in it: content and closing token."""
        text = self.text(messages)
        regions = []
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                start = self.beginning(text, messages, number, prompt=True)
                last = number == len(messages) - 1
                end = len(text) if last else self.beginning(text, messages, number + 1, prompt=False)
                regions.append((start, _turn_end(text, start, end, message)))
        return text, regions

    def beginning(self, text: str, messages: Messages, count: int, *, prompt: bool) -> int:
        """The length of the first ``count`` messages in the rendered whole.

        Raises:
            RowError: if the whole does not begin with them as they are rendered alone.
        """
        head = self.text(messages[:count], prompt=prompt)
        if text.startswith(head):
            return len(head)
        same = next((i for i, (a, b) in enumerate(zip(head, text, strict=False)) if a != b), min(len(head), len(text)))
        what = (
            f"the chat template does not let the assistant's text be told apart: rendered alone, the messages before "
            f"turn {count + 1} go on with {head[same : same + 24]!r} where the whole has {text[same : same + 24]!r}"
        )
        raise RowError(self.index, what, _MEND)

    def _render(self, messages: Messages, *, prompt: bool = False, masked: bool = False) -> tuple[str, list[Region]]:
        try:
            if not masked:
                template = compiled(self.template)
                return template.render(
                    messages=messages,
                    tools=self.tools,
                    documents=None,
                    add_generation_prompt=prompt,
                    **self.special_tokens,
                ), []
            return _render_marked(self.template, messages, self.tools, self.special_tokens)
        except Exception as error:  # a template runs the user's Jinja, which may raise anything
            roles = ", ".join(message["role"] for message in messages) or "none"
            what = f"the chat template refuses the messages (roles: {roles}): {type(error).__name__}: {error}"
            raise RowError(self.index, what, "change the messages, or use another template, as -p chatml") from error


def compiled(template: str) -> Any:
    """The template as transformers compiles it, once; its own rendering function prepares far more at each call."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    return _compile_jinja_template(template)


def _render_marked(
    template: str, messages: Messages, tools: list[dict[str, Any]] | None, special_tokens: Mapping[str, Any]
) -> tuple[str, list[Region]]:
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, regions = render_jinja_template(
        conversations=[messages],
        tools=tools,
        chat_template=template,
        return_assistant_tokens_mask=True,
        **special_tokens,
    )
    return texts[0], [(int(start), int(end)) for start, end in regions[0]]


def split(text: str, regions: Sequence[Region]) -> Document:
    """The text as spans, trained inside the regions."""
    spans, done = [], 0
    for start, end in regions:
        if start > done:
            spans.append(Span(text[done:start], False))
        if end > start:
            spans.append(Span(text[start:end], True))
        done = max(done, end)
    if done < len(text):
        spans.append(Span(text[done:], False))
    return spans


def _turn_end(text: str, start: int, end: int, message: dict[str, Any]) -> int:
    """Where a turn's closing token ends.

    White space that the template adds behind it is not the assistant's, as markers put around the turn would show.
    Where the turn has no closing token, white space is what closes it, and stays.
    """
    turn = text[start:end].rstrip()
    content = message.get("content", "").rstrip()
    return end if content and turn.endswith(content) else start + len(turn)


def _covers_content(text: str, regions: Sequence[Region], messages: Messages) -> bool:
    """Whether the regions hold what an assistant wrote, of that which the template renders unchanged.

    The markers' places are counted wrongly inside macros, by what the macro has written so far.
    """
    contents = [message.get("content", "").strip() for message in messages if message["role"] == "assistant"]
    rendered = [content for content in contents if content and content in text]
    trained = [text[start:end] for start, end in regions]
    return any(trained) and (not rendered or any(content in part for content in rendered for part in trained))
