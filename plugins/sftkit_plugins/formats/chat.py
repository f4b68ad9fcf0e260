"""Conversations rendered with the tokenizer's chat template, and which of their characters are trained."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal

from sftkit.api import Columns, Document, Formatted, Outcome, RowError, Skipped
from sftkit_plugins.formats.conversation import Conversation, Reader
from sftkit_plugins.formats.details import narrowed
from sftkit_plugins.formats.flags import DETAIL, READ, weight_of
from sftkit_plugins.formats.options import ColumnFormatter, Loss
from sftkit_plugins.formats.plain import Known, PlainRows
from sftkit_plugins.formats.presence import Part
from sftkit_plugins.formats.probes import Probes, in_form
from sftkit_plugins.formats.rendering import DATE, Messages, RefusedError, Region, Rendering, split
from sftkit_plugins.formats.source import source_of
from sftkit_plugins.formats.stand_ins import StandIns
from sftkit_plugins.formats.turns import Found, Turns

Reasoning = Literal["as_rendered", "last_turn_only", "each_turn_as_last"]


@dataclass(frozen=True, kw_only=True)
class Chat(ColumnFormatter):
    """Conversations, whatever their columns are.

    The characters that the assistant wrote are found exactly; see `Turns`.

    Args:
        reader: reads the conversation of a row.
        template: the Jinja chat template, or several by name; ``tool_use`` is for rows with tools.
        special_tokens: the tokenizer's, by name, for the template.
        loss: ``assistant`` (content and closing token of each assistant turn), ``completion`` or ``all``.
        turns: which turns of ``roles`` are trained; the flags of a message override this.
        roles: whose turns are trained.
        variables: further variables for the template; those of a row override them.
        allow_left_out: what the template may leave out.
        reasoning: what to do with turns whose reasoning the template leaves out: train them as they are rendered, do
            not train them, or make a document of each trained turn, in which it is the last.
        date: the date that the template writes as that of today.
    """

    reader: Reader
    template: str | dict[str, str]
    special_tokens: Mapping[str, Any]
    loss: Loss = "assistant"
    turns: Literal["all", "last"] = "all"
    roles: tuple[str, ...] = ("assistant",)
    variables: Mapping[str, Any] = field(default_factory=dict)
    allow_left_out: tuple[Part, ...] = ()
    reasoning: Reasoning = "as_rendered"
    date: str = DATE
    _known: dict[Any, tuple[Probes, Turns]] = field(default_factory=dict, repr=False, compare=False)
    _plain: Known = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def adds_special_tokens(self) -> bool:
        """False: the template writes them."""
        return False

    def __getstate__(self) -> dict[str, Any]:
        """Without what is known about the template, so that a used formatter pickles to the same bytes as a new one."""
        return {**self.__dict__, "_known": {}, "_plain": {}}

    def documents(self, rows: Columns) -> list[Outcome]:
        """The rendered conversations as spans.

        Raises:
            RowError: for a value that is not a conversation, messages that the template rejects or leaves out, a
                template that does not reveal what the assistant wrote, or an invalid weight.
        """
        outcomes, reader, plain = [], self.reader, self._plain_rows()
        for index in range(len(next(iter(rows.values())))):
            conversation = reader(rows, index)
            try:
                outcome = None if plain is None else plain.outcome(conversation)
                if outcome is None:
                    outcome = self._outcome(conversation, index)
                    if plain is not None:
                        plain.learn()
                outcomes.append(outcome)
            except RefusedError as refusal:
                raise RowError(index, refusal.message, refusal.fix) from refusal
        return outcomes

    @property
    def columns_used(self) -> frozenset[str]:
        """See `ColumnFormatter`."""
        return self.with_weight(self.reader.columns)

    def _plain_rows(self) -> PlainRows | None:
        if self.loss != "assistant" or self.reasoning == "each_turn_as_last":
            return None
        known = self.known(None, self.variables)
        notes = unread_notes(self.variables, known[0])
        return PlainRows(self._plain, known, self.variables, notes, self._dated, self._chosen)

    @property
    def _dated(self) -> str:
        return f"the template prints a date: {self.date} is used"

    def _outcome(self, conversation: Conversation, index: int) -> Outcome:
        if not conversation.messages:
            return Skipped("empty conversation")
        messages, trained = self._trained_turns(conversation.messages, index)
        if self.loss == "assistant" and not trained:
            return Skipped(f"no {' or '.join(self.roles)} turn")
        if self.loss == "completion" and conversation.prompt == len(messages):
            return Skipped("empty completion")
        row = _Row(self, conversation, messages, index)
        if self.loss == "all":
            documents = [split(row.find(frozenset()).text, [(0, len(row.found.text))])]
        elif self.loss == "completion":
            documents = [row.completion(conversation.prompt or 0)]
        elif self.reasoning == "each_turn_as_last" and (len(trained) > 1 or max(trained) < len(messages) - 1):
            documents = [row.turns({number: trained[number]}, number + 1) for number in sorted(trained)]
        else:
            documents = [row.turns(trained)]
        kept = [document for document in documents if document]
        if not kept:
            return Skipped("no turn whose reasoning the template renders")
        notes = tuple(dict.fromkeys([*conversation.notes, *row.notes]))
        return Formatted(kept, notes) if notes or len(kept) > 1 else kept[0]

    def _chosen(self, messages: Messages) -> set[int]:
        """The messages that are trained unless their own keys say otherwise."""
        chosen = [number for number, message in enumerate(messages) if message["role"] in self.roles]
        return set(chosen[-1:] if self.turns == "last" else chosen)

    def _trained_turns(self, messages: Messages, index: int) -> tuple[Messages, dict[int, float]]:
        """The messages without the keys that say what is trained, and the weights of the trained messages."""
        trained = dict.fromkeys(self._chosen(messages), 1.0)
        if not any("train" in message or "weight" in message for message in messages):
            return messages, trained
        for number, message in enumerate(messages):
            weight = weight_of(message)
            if weight is None:
                continue
            if self.loss != "assistant":
                key = next(key for key in READ if message.get(key) is not None)
                what = f"message {number + 1} has the key {key}, which has no effect with loss={self.loss}"
                raise RowError(index, what, "remove the key, or set formats:loss=assistant")
            if weight:
                trained[number] = weight
            else:
                trained.pop(number, None)
        return [{k: v for k, v in message.items() if k not in READ} for message in messages], trained

    def known(self, tools: list[dict[str, Any]] | None, variables: Mapping[str, Any]) -> tuple[Probes, Turns]:
        """What is known about the template for rows with such tools and variables."""
        template = self.template
        if not isinstance(template, str):
            template = template["tool_use" if tools and "tool_use" in template else "default"]
        if variables:
            variables = StandIns(source_of(template)).variables(variables)
        key = template, bool(tools), json.dumps(variables, default=repr) if variables else ""
        if key not in self._known:
            rendering = Rendering(template, self.special_tokens, self.date)
            probes = Probes(rendering, bool(tools), variables)
            if len(self._known) >= _KEPT:
                self._known.pop(next(iter(self._known)))
            self._known[key] = probes, Turns(rendering, probes, self.allow_left_out)
        return self._known[key]


_KEPT = 16
"""For how many combinations of template, tools and variables the probes and structures are kept."""


def unread_notes(variables: Mapping[str, Any], probes: Probes) -> list[str]:
    """Notes of the variables that the template does not read."""
    unread = [name for name in variables if name not in probes.source.reads and name != "documents"]
    return [f"chat_template_kwargs {name} ignored" for name in unread]


class _Row:
    """One row: renders it, and collects the notes."""

    def __init__(self, chat: Chat, conversation: Conversation, messages: Messages, index: int) -> None:
        self._chat, self._index = chat, index
        self._tools = conversation.tools
        self._variables = {**chat.variables, **conversation.variables}
        self._probes, self._turns = chat.known(self._tools, self._variables)
        if any(message.get("tool_calls") for message in messages):
            form = self._probes.call_form()
            messages = [in_form(message, form) for message in messages]
        self._messages = messages
        self._parts = {n: message[DETAIL] for n, message in enumerate(conversation.messages) if DETAIL in message}
        self.notes = unread_notes(self._variables, self._probes)

    def find(self, wanted: frozenset[int], count: int | None = None) -> Found:
        """The rendered conversation, or its first messages, with some turns located."""
        clock = self._probes.rendering.clock
        clock.clear()
        self.found = self._turns.find(self._messages[:count], self._tools, self._variables, wanted)
        if clock:
            self.notes.append(self._chat._dated)
        self.notes += self.found.notes
        return self.found

    def turns(self, trained: dict[int, float], count: int | None = None) -> Document:
        """The document of some trained turns."""
        found = self.find(frozenset(trained), count)
        left_out = found.presence.reasoning if self._chat.reasoning == "last_turn_only" else ()
        kept = [(number, region) for number, region in found.regions if number not in left_out]
        if left_out and not kept:
            return ()
        if self._parts:
            kept = list(self._narrowed(found.text, kept))
        return split(found.text, [region for _, region in kept], [trained[number] for number, _ in kept])

    def _narrowed(self, text: str, regions: list[tuple[int, Region]]) -> Iterator[tuple[int, Region]]:
        """The regions, of messages of which only parts are trained those of the parts."""
        for number, turn in groupby(regions, key=itemgetter(0)):
            places = [region for _, region in turn]
            if number in self._parts:
                places = list(narrowed(text, places, self._parts[number], self._messages[number], number))
            yield from ((number, region) for region in places)

    def completion(self, prompt: int) -> Document:
        """The document of a completion that begins with a message."""
        role = self._messages[prompt]["role"]
        if role != "assistant":
            what = f"the completion begins with a message of the role {role}"
            fix = "begin it with an assistant message, or set formats:loss=assistant"
            raise RowError(self._index, what, fix)
        found = self.find(frozenset({prompt, len(self._messages) - 1}))
        if not found.regions:
            return split(found.text, [])
        return split(found.text, [(found.regions[0][1][0], found.regions[-1][1][1])])
