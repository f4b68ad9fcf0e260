"""Conversations in other shapes than a list of messages: questions with answers, texts in turn, and trees."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sftkit.api import RowError
from sftkit_plugins.formats.conversation import Message
from sftkit_plugins.formats.flags import FLAGS
from sftkit_plugins.formats.reading import REASONING, Rules, kind, read_messages
from sftkit_plugins.formats.tool_calls import from_text

#: The keys of a question and its answer, in lists of exchanges.
EXCHANGES = (
    ("human", "assistant"),
    ("user", "assistant"),
    ("input", "output"),
    ("prompt", "response"),
    ("question", "answer"),
    ("query", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
)
_ABOUT = (*FLAGS, *REASONING)
LEFT_OUT = "other replies of the tree ignored"


def exchange_keys(keys: Any) -> tuple[str, str] | None:
    """The keys of the question and of the answer among some keys."""
    return next((pair for pair in EXCHANGES if set(pair) <= set(keys)), None)


def read_conversation(value: Any, index: int, column: str, rules: Rules, notes: set[str]) -> list[Message]:
    """The messages of a conversation in any shape: messages, exchanges or texts in turn; also as JSON text.

    Args:
        value: the conversation.
        index: position of the row in its batch, for errors.
        column: the name of the column, for errors.
        rules: how messages are read.
        notes: gets a note for each key that is left out.

    Raises:
        RowError: for a value that is not a conversation.
    """
    if isinstance(value, str):
        value = parsed(value, index, column)
    first = value[0] if isinstance(value, list) and value else None
    if isinstance(first, str):
        value = _in_turn(value, index, column)
    elif isinstance(first, dict) and first.get("role") is None and first.get("from") is None:
        value = _exchanged(value, index, column, notes)
    return read_messages(value, index, column, rules, notes)


def read_history(value: Any, index: int, column: str, rules: Rules, notes: set[str]) -> list[Message]:
    """The messages of earlier turns: ``[[question, answer], ...]``, or a conversation in any shape.

    Raises:
        RowError: for anything else.
    """
    if isinstance(value, str):
        value = parsed(value, index, column) if value.strip() else None
    if not value:
        return []
    if not (isinstance(value, list) and all(isinstance(pair, list | tuple) for pair in value)):
        return read_conversation(value, index, column, rules, notes)
    if any(len(pair) != 2 or not all(isinstance(text, str) for text in pair) for pair in value):
        what = f"column {column!r} has an item that is not [question, answer]"
        raise RowError(index, what, "write [[question, answer], ...], or rename the column")
    return read_messages(
        _in_turn([text for pair in value for text in pair], index, column), index, column, rules, notes
    )


def parsed(text: str, index: int, column: str) -> Any:
    """What a text holds as JSON, or as Python writes it.

    Raises:
        RowError: if it is neither.
    """
    try:
        return from_text(text)
    except json.JSONDecodeError as error:
        fix = "write it as JSON, or rename the column"
        raise RowError(index, f"column {column!r} is text that is not JSON: {error}", fix) from None


def _in_turn(texts: list[Any], index: int, column: str) -> list[Message]:
    if not all(isinstance(text, str) for text in texts):
        what = f"column {column!r} has text and other values"
        raise RowError(index, what, "write only texts, by the user and the assistant in turn")
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]


def _exchanged(value: list[Any], index: int, column: str, notes: set[str]) -> list[Any]:
    """Messages for a list of questions with answers; any other list is returned as it is.

    A system message comes before its question; flags and reasoning belong to the answer.
    """
    messages: list[Message] = []
    for exchange in value:
        pair = exchange_keys(exchange) if isinstance(exchange, dict) else None
        if pair is None:
            return value
        question, answer = pair
        if exchange.get("system"):
            messages.append({"role": "system", "content": exchange["system"]})
        about = {key: exchange[key] for key in exchange if key in _ABOUT}
        messages.append({"role": "user", "content": exchange[question]})
        messages.append({"role": "assistant", "content": exchange[answer], **about})
        others = exchange.keys() - {*pair, "system", *_ABOUT}
        notes.update(f"message key {key} ignored" for key in others if exchange[key] is not None)
    return messages


def read_tree(value: Any, index: int, column: str, rules: Rules, notes: set[str]) -> list[Message]:
    """The best thread of a message tree (Open Assistant): at each step the reply with the lowest rank.

    A reply without a rank comes after those with one, and deleted replies are left out. Other replies are noted.

    Raises:
        RowError: if the value is not a tree.
    """
    messages: list[Message] = []
    node = value
    while node is not None:
        if not isinstance(node, Mapping) or not {"text", "role"} <= node.keys():
            fix = "write each message of the tree as {text, role, replies}"
            raise RowError(index, f"column {column!r} is {kind(node)}, not a tree of messages", fix)
        messages.append({"role": node["role"], "content": node["text"]})
        replies = [reply for reply in node.get("replies") or () if not (reply or {}).get("deleted")]
        if len(node.get("replies") or ()) > 1:
            notes.add(LEFT_OUT)
        node = min(replies, key=_rank, default=None)
    return read_messages(messages, index, column, rules, notes)


def _rank(reply: Any) -> float:
    rank = reply.get("rank") if isinstance(reply, Mapping) else None
    return float("inf") if rank is None else float(rank)
