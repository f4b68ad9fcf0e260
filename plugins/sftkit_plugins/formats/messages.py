"""Readers of rows that hold a conversation: messages, a question and its answer, or a tree of messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sftkit.api import Columns, RowError
from sftkit_plugins.formats.conversation import Conversation, Message
from sftkit_plugins.formats.pairs import Pair
from sftkit_plugins.formats.reading import (
    HAS_TOOLS,
    PLAIN as PLAIN,
    REASONING as REASONING,
    TOOLS_INSIDE,
    Rules,
    read_messages as read_messages,
)
from sftkit_plugins.formats.shapes import read_conversation, read_tree
from sftkit_plugins.formats.side_columns import SideColumns, names_of
from sftkit_plugins.formats.tool_calls import read_tools


@dataclass(frozen=True)
class MessagesReader:
    """Reads a column of messages, or one of the prompt's and one of the completion's.

    Attributes:
        names: the column, or the two columns; a text in one of two columns is a message of the user or the assistant.
        side: the columns beside it, if there are any.
        rules: how messages are read.
    """

    names: tuple[str, ...]
    side: SideColumns | None = None
    rules: Rules = field(default_factory=Rules)

    @property
    def columns(self) -> frozenset[str]:
        """The columns that it uses."""
        return frozenset(self.names) | names_of(self.side)

    def __call__(self, rows: Columns, index: int) -> Conversation:
        """The conversation of a row.

        Raises:
            RowError: for a value that is not a conversation, or a column beside it that cannot be read.
        """
        notes: set[str] = set()
        if len(self.names) == 1:
            messages = read_conversation(rows[self.names[0]][index], index, self.names[0], self.rules, notes)
            if self.side is None and not notes:
                return Conversation(messages)
            return _conversation(messages, None, self.side, self.rules, rows, index, notes)
        parts = []
        for name, role in zip(self.names, ("user", "assistant"), strict=True):
            value = rows[name][index]
            value = [{"role": role, "content": value}] if isinstance(value, str) else value
            parts.append(read_conversation(value, index, name, self.rules, notes))
        prompt, completion = parts
        return _conversation(prompt, completion, self.side, self.rules, rows, index, notes)


@dataclass(frozen=True)
class PairReader:
    """Reads a question and its answer as a conversation.

    Attributes:
        pair: the columns of the question and of the answer.
        side: the columns beside them, if there are any.
        rules: how messages are read.
    """

    pair: Pair
    side: SideColumns | None = None
    rules: Rules = field(default_factory=Rules)

    @property
    def columns(self) -> frozenset[str]:
        """The columns that it uses."""
        return self.pair.columns | names_of(self.side)

    def __call__(self, rows: Columns, index: int) -> Conversation:
        """The conversation of a row.

        Raises:
            RowError: for a null or a value that is not text, or a column beside it that cannot be read.
        """
        notes: set[str] = set()
        question, answer = self.pair.question_of(rows, index), self.pair.answer_of(rows, index)
        if not question and not answer:
            return Conversation([])
        thought = self.pair.reasoning_of(rows, index, notes)
        asked = read_messages([{"role": "user", "content": question}], index, self.pair.question, self.rules, notes)
        message: Message = {"role": "assistant", "content": answer}
        message |= {"reasoning_content": thought} if thought else {}
        answered = read_messages([message], index, self.pair.answer, self.rules, notes)
        return _conversation(asked, answered, self.side, self.rules, rows, index, notes)


@dataclass(frozen=True)
class TreeReader:
    """Reads the best thread of a tree of messages.

    Attributes:
        column: the column of the tree.
        side: the columns beside it, if there are any.
        rules: how messages are read.
    """

    column: str
    side: SideColumns | None = None
    rules: Rules = field(default_factory=Rules)

    @property
    def columns(self) -> frozenset[str]:
        """The columns that it uses."""
        return frozenset({self.column}) | names_of(self.side)

    def __call__(self, rows: Columns, index: int) -> Conversation:
        """The conversation of a row.

        Raises:
            RowError: for a value that is not a tree of messages.
        """
        notes: set[str] = set()
        messages = read_tree(rows[self.column][index], index, self.column, self.rules, notes)
        return _conversation(messages, None, self.side, self.rules, rows, index, notes)


def _conversation(
    prompt: list[Message],
    completion: list[Message] | None,
    side: SideColumns | None,
    rules: Rules,
    rows: Columns,
    index: int,
    notes: set[str],
) -> Conversation:
    """The conversation with what the columns beside it add."""
    tools: list[dict[str, Any]] | None = None
    variables: dict[str, Any] = {}
    if side is not None and (prompt or completion):
        prompt = side.complete(prompt, rows, index, rules, notes)
        tools, variables = side.read_tools(rows, index), side.read_variables(rows, index, notes)
    messages = prompt if completion is None else [*prompt, *completion]
    if HAS_TOOLS in notes:
        messages, tools = _lifted(messages, tools, rules, index, notes)
    number = None if completion is None else len(prompt)
    return Conversation(messages, number, tools, variables, sorted(notes) if notes else ())


def _lifted(
    messages: list[Message], tools: list[dict[str, Any]] | None, rules: Rules, index: int, notes: set[str]
) -> tuple[list[Message], list[dict[str, Any]] | None]:
    """The messages without tools inside them, and the tools of the row, which these are if it has no others."""
    notes.discard(HAS_TOOLS)
    keys = rules.reads.keys or frozenset()
    inside = [key for key in TOOLS_INSIDE if key not in keys]
    found = [(number, key) for number, message in enumerate(messages) for key in inside if key in message]
    if len(found) > 1:
        where = " and ".join(str(number + 1) for number, _ in found)
        fix = "give them all in one message, or in the column tools"
        raise RowError(index, f"messages {where} have tools, but the chat template takes one list of them", fix)
    for number, key in found:
        if tools is None:
            tools = read_tools(messages[number][key], index, f"message {number + 1}: {key}", exact=rules.exact)
        else:
            notes.add(f"message key {key} ignored")
    return [{key: value for key, value in message.items() if key not in inside} for message in messages], tools
