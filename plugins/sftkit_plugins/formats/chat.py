"""Conversations rendered with the tokenizer's chat template, and which of their characters are trained."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sftkit.api import Columns, Document, Formatted, Outcome, RowError, Skipped, Span
from sftkit_plugins.formats.conversation import Conversation, Reader
from sftkit_plugins.formats.messages import PLAIN
from sftkit_plugins.formats.options import ColumnFormatter, Loss
from sftkit_plugins.formats.rendering import FIX, Messages, Region, Rendering, split
from sftkit_plugins.formats.skeleton import Skeleton, stand_ins
from sftkit_plugins.formats.turns import Turns, turn_end
from sftkit_plugins.formats.weights import KEYS, message_weight


@dataclass(frozen=True, kw_only=True)
class Chat(ColumnFormatter):
    """Conversations, whatever their columns are.

    The characters that the assistant wrote are found exactly: with the template's ``{% generation %}`` markers, or by
    rendering parts of the conversation and comparing them.

    Args:
        reader: reads the conversation of a row.
        template: the Jinja chat template, or several by name; ``tool_use`` is for rows with tools.
        special_tokens: the tokenizer's, by name, for the template.
        loss: ``assistant`` (content and closing token of each assistant turn), ``completion`` or ``all``.
        turns: which turns of ``roles`` are trained; ``train`` or ``weight`` on a message overrides this.
        roles: whose turns are trained.
    """

    reader: Reader
    template: str | dict[str, str]
    special_tokens: Mapping[str, Any]
    loss: Loss = "assistant"
    turns: Literal["all", "last"] = "all"
    roles: tuple[str, ...] = ("assistant",)
    _skeletons: dict[Any, tuple[Skeleton | None, list[int]]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def adds_special_tokens(self) -> bool:
        """False: the template writes them."""
        return False

    def __getstate__(self) -> dict[str, Any]:
        """Without the skeletons, so that a used formatter pickles to the same bytes as a new one."""
        return {**self.__dict__, "_skeletons": {}}

    def documents(self, rows: Columns) -> list[Outcome]:
        """The rendered conversations as spans.

        Raises:
            RowError: for a value that is not a conversation, messages that the template rejects, a template that does
                not reveal what the assistant wrote, or an invalid weight.
        """
        return [self._outcome(self.reader(rows, index), index) for index in range(len(next(iter(rows.values()))))]

    @property
    def columns_used(self) -> frozenset[str]:
        """See `ColumnFormatter`."""
        return self.with_weight(self.reader.columns)

    def _outcome(self, conversation: Conversation, index: int) -> Outcome:
        document = self._document(conversation, index)
        if not conversation.notes or isinstance(document, Skipped):
            return document
        return Formatted([document], conversation.notes)

    def _document(self, conversation: Conversation, index: int) -> Document | Skipped:
        messages, tools = conversation.messages, conversation.tools
        if not messages:
            return Skipped("empty conversation")
        rendering = Rendering(self._template(tools), self.special_tokens, tools, index)
        plain = tools is None and all(message.keys() == PLAIN for message in messages)
        if plain and self.loss == "assistant":
            return self._plain(rendering, messages, dict.fromkeys(self._chosen(messages), 1.0))
        messages, trained = self._trained_turns(messages, index)
        if self.loss == "all":
            return (Span(rendering.text(messages), True),)
        if self.loss == "completion":
            return self._completion(rendering, messages, conversation.prompt or 0)
        if tools is None and all(message.keys() == PLAIN for message in messages):
            return self._plain(rendering, messages, trained)
        if not trained:
            return self._untrained()
        text = rendering.text(messages)
        found = find_regions(rendering, messages, text, trained)
        return split(text, [region for _, region in found], [trained[number] for number, _ in found])

    def _plain(self, rendering: Rendering, messages: Messages, trained: dict[int, float]) -> Document | Skipped:
        """A conversation of nothing but roles and contents, with the weights of its trained messages."""
        if not trained:
            return self._untrained()
        key = tuple([message["role"] for message in messages]), tuple(sorted(trained))
        if key not in self._skeletons:
            self._skeletons[key] = _skeleton(rendering, messages, trained)
        skeleton, numbers = self._skeletons[key]
        text = rendering.text(messages)
        regions = skeleton.find(text, [message["content"] for message in messages]) if skeleton else None
        if regions is None:
            found = find_regions(rendering, messages, text, trained)
            numbers, regions = [number for number, _ in found], [region for _, region in found]
        return split(text, regions, [trained[number] for number in numbers])

    def _untrained(self) -> Skipped:
        return Skipped(f"no {' or '.join(self.roles)} turn")

    def _chosen(self, messages: Messages) -> set[int]:
        """The messages that are trained unless their own keys say otherwise."""
        chosen = [number for number, message in enumerate(messages) if message["role"] in self.roles]
        return set(chosen[-1:] if self.turns == "last" else chosen)

    def _completion(self, rendering: Rendering, messages: Messages, prompt: int) -> Document | Skipped:
        if prompt == len(messages):
            return Skipped("empty completion")
        if messages[prompt]["role"] != "assistant":
            what = f"the completion begins with a message of the role {messages[prompt]['role']}"
            fix = "begin it with an assistant message, or set formats:loss=assistant"
            raise RowError(rendering.index, what, fix)
        text = rendering.text(messages)
        start = Turns(rendering, messages, text).start(prompt)
        return split(text, [(start, turn_end(text, start, len(text), messages[-1]))])

    def _trained_turns(self, messages: Messages, index: int) -> tuple[Messages, dict[int, float]]:
        """The messages without the keys ``train`` and ``weight``, and the weights of the trained messages."""
        trained = dict.fromkeys(self._chosen(messages), 1.0)
        if not any("train" in message or "weight" in message for message in messages):
            return messages, trained
        for number, message in enumerate(messages):
            weight = message_weight(message, index, number + 1)
            if weight is None:
                continue
            if self.loss != "assistant":
                key = next(key for key in KEYS if message.get(key) is not None)
                what = f"message {number + 1} has the key {key}, which has no effect with loss={self.loss}"
                raise RowError(index, what, "remove the key, or set formats:loss=assistant")
            if weight:
                trained[number] = weight
            else:
                trained.pop(number, None)
        return [{k: v for k, v in message.items() if k not in KEYS} for message in messages], trained

    def _template(self, tools: list[dict[str, Any]] | None) -> str:
        if isinstance(self.template, str):
            return self.template
        return self.template["tool_use" if tools and "tool_use" in self.template else "default"]


def _skeleton(rendering: Rendering, messages: Messages, trained: Collection[int]) -> tuple[Skeleton | None, list[int]]:
    """The skeleton, and the number of the message that each of its regions belongs to."""
    masked = stand_ins(messages)
    try:
        text = rendering.text(masked)
        found = find_regions(rendering, masked, text, trained)
    except RowError:  # the row itself raises a clearer error
        return None, []
    return Skeleton.of(text, [region for _, region in found]), [number for number, _ in found]


def find_regions(
    rendering: Rendering, messages: Messages, text: str, trained: Collection[int]
) -> list[tuple[int, Region]]:
    """Where the trained messages are in the rendered conversation.

    They are found with the template's markers, or by rendering parts of the conversation.

    Returns:
        Regions in order, each with the number of its message; a message may have several.

    Raises:
        RowError: if a message cannot be located, or the template leaves out a part of it.
    """
    turns = Turns(rendering, messages, text)
    turns.check_rendered(trained)
    if not rendering.has_markers or all(message["role"] != "assistant" for message in messages):
        return [(number, turns.region(number)) for number in sorted(trained)]
    regions = _marked(turns, rendering, messages, trained)
    regions += [(number, turns.region(number)) for number in trained if messages[number]["role"] != "assistant"]
    return sorted(regions)


def _marked(
    turns: Turns, rendering: Rendering, messages: Messages, trained: Collection[int]
) -> list[tuple[int, Region]]:
    """The marked regions of the trained turns, without the generation prompt and trailing whitespace."""
    regions = rendering.marked(messages, turns.text)
    assistant = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    starts = {number: _start(turns, number) for number in assistant}
    unknown = None in starts.values()
    if len(regions) != len(assistant) and unknown and not set(trained) >= set(assistant):
        what = f"the chat template marks {len(regions)} regions for {len(assistant)} assistant turns"
        raise RowError(rendering.index, f"{what}, so it is unclear which turn each region belongs to", FIX)
    found = []
    for at, (start, end) in enumerate(regions):
        if len(regions) == len(assistant):
            number = assistant[at]
        else:
            number = max((n for n, first in starts.items() if first is not None and first < end), default=assistant[0])
        first = starts[number]
        start = start if first is None else max(start, first)
        if start < end and number in trained:
            found.append((number, (start, turn_end(turns.text, start, end, messages[number]))))
    return found


def _start(turns: Turns, number: int) -> int | None:
    try:
        return turns.start(number)
    except RowError:
        return None
