"""Conversations as found in data, converted to the form that chat templates expect."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import chain
from typing import Any, get_args

from sftkit.api import Columns, RowError
from sftkit_plugins.formats.conversation import Conversation
from sftkit_plugins.formats.options import Role

ROLES = get_args(Role)
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
PLAIN = {"role", "content"}
REASONING = ("reasoning_content", "thinking", "reasoning")
_SHAPE = "write each message as {role, content} or {from, value}"


@dataclass(frozen=True)
class MessagesReader:
    """Reads a column of messages, or one of the prompt's and one of the completion's.

    Attributes:
        names: the column, or the two columns.
        has_tools: whether the data has a column ``tools``.
    """

    names: tuple[str, ...]
    has_tools: bool = False

    @property
    def columns(self) -> frozenset[str]:
        """The columns that it uses."""
        return frozenset(self.names) | ({"tools"} if self.has_tools else set())

    def __call__(self, rows: Columns, index: int) -> Conversation:
        """The conversation of a row.

        Raises:
            RowError: for a value that is not a conversation, or tools that are not descriptions.
        """
        parts = [read_messages(rows[name][index], index, name) for name in self.names]
        messages = parts[0] if len(parts) == 1 else list(chain.from_iterable(parts))
        tools = read_tools(rows["tools"][index], index) if self.has_tools else None
        return Conversation(messages, len(parts[0]) if len(parts) > 1 else None, tools)


def read_messages(value: Any, index: int, column: str) -> list[dict[str, Any]]:
    """The messages of one row as ``{role, content, ...}``, without the nulls that Arrow adds for missing keys.

    A returned message may be the object in the data: do not change it.

    Raises:
        RowError: for a value that is not a conversation; names the column and the message.
    """
    if not isinstance(value, list):
        raise RowError(index, f"column {column!r} is {_kind(value)}, not a list of messages", _SHAPE)
    messages = []
    for number, raw in enumerate(value, start=1):
        if type(raw) is dict and raw.keys() == PLAIN and type(raw["content"]) is str and raw["role"] in ROLES:
            messages.append(raw)
            continue
        where = f"column {column!r}, message {number}"
        if not isinstance(raw, dict):
            raise RowError(index, f"{where} is {_kind(raw)}, not a mapping", _SHAPE)
        plain = all(isinstance(value, str) for value in raw.values())
        message = raw.copy() if plain else without_nulls(raw)
        if "from" in message and "role" not in message:
            message = _from_sharegpt(message, index, where)
        if len(message) > 2 or "content" not in message:
            _name_reasoning(message)
            if message.get("tool_calls"):
                message["tool_calls"] = _read_calls(message["tool_calls"], index, where)
        _check(message, index, where)
        if not isinstance(message.get("content", ""), str):
            message["content"] = _joined_text(message["content"], index, where)
        messages.append(message)
    return messages


def _name_reasoning(message: dict[str, Any]) -> None:
    """Store reasoning under each name that templates use, as recent releases of transformers do."""
    reasoning = next((message[key] for key in REASONING if key in message), None)
    if reasoning is not None and message.get("role") == "assistant":
        message.setdefault("thinking", reasoning)
        message["reasoning_content"] = reasoning


def _read_calls(value: Any, index: int, where: str) -> list[dict[str, Any]]:
    """Tool calls with mappings as arguments, which templates expect; all of it or parts may be JSON text."""
    try:
        calls = json.loads(value) if isinstance(value, str) else value
        calls = [json.loads(call) if isinstance(call, str) else call for call in calls]
        calls = [
            {**call, "function": _read_call(call["function"])} if "function" in call else _read_call(call)
            for call in calls
        ]
    except (TypeError, KeyError, ValueError) as error:
        what = f"{where}: cannot read tool_calls: {type(error).__name__}: {error}"
        fix = (
            'write a list of {"type": "function", "function": {"name": ..., "arguments": {...}}}, or this as JSON text'
        )
        raise RowError(index, what, fix) from None
    return calls


def _read_call(call: dict[str, Any]) -> dict[str, Any]:
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        arguments = json.loads(arguments or "{}")
        if not isinstance(arguments, dict):
            raise TypeError(f"the arguments are {_kind(arguments)}, not a mapping")
        return {**call, "arguments": arguments}
    return call


def without_nulls(value: Any) -> Any:
    """A copy without keys whose value is None, at any depth: in a columnar store every row has every key."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def read_tools(value: Any, index: int) -> list[dict[str, Any]] | None:
    """The tools of one row, from a list of JSON schemas; the list or its items may be JSON text.

    Raises:
        RowError: if it is neither.
    """
    fix = "use a list of tool descriptions (JSON schemas), or this as JSON text"
    try:
        tools = json.loads(value) if isinstance(value, str) and value.strip() else value
        if not tools:
            return None
        if isinstance(tools, list):
            tools = [json.loads(tool) if isinstance(tool, str) else without_nulls(tool) for tool in tools]
    except json.JSONDecodeError as error:
        raise RowError(index, f"column 'tools' is not valid JSON: {error}", fix) from None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowError(index, f"column 'tools' is {_kind(tools)}, not a list of mappings", fix)
    return tools


def _from_sharegpt(message: dict[str, Any], index: int, where: str) -> dict[str, Any]:
    sender = message["from"]
    if sender not in SHAREGPT_ROLES:
        raise RowError(index, f"{where}: unknown 'from' {sender!r}", f"use one of: {', '.join(SHAREGPT_ROLES)}")
    rest = {key: item for key, item in message.items() if key not in ("from", "value")}
    if sender == "function_call":
        return {**rest, "role": "assistant", "tool_calls": _tool_calls(message.get("value"), index, where)}
    content = {"content": message["value"]} if "value" in message else {}
    return {**rest, "role": SHAREGPT_ROLES[sender], **content}


def _tool_calls(value: Any, index: int, where: str) -> list[dict[str, Any]]:
    try:
        calls = json.loads(value)
    except (TypeError, json.JSONDecodeError):
        calls = None
    calls = calls if isinstance(calls, list) else [calls]
    if not calls or not all(isinstance(call, dict) and "name" in call for call in calls):
        fix = 'write {"name": ..., "arguments": {...}} as JSON, or a list of these'
        raise RowError(index, f"{where}: the value of this function_call is not a call", fix)
    return [{"type": "function", "function": call} for call in calls]


def _check(message: dict[str, Any], index: int, where: str) -> None:
    if "role" not in message:
        raise RowError(index, f"{where} has no role", _SHAPE)
    if message["role"] not in ROLES:
        raise RowError(index, f"{where}: unknown role {message['role']!r}", f"use one of: {', '.join(ROLES)}")
    calls = message["role"] == "assistant" and (message.get("tool_calls") or message.get("function_call"))
    if "content" not in message and not calls:
        raise RowError(index, f"{where} ({message['role']}) has no content", "fill in the content, or remove the row")


def _joined_text(content: Any, index: int, where: str) -> str:
    """The text of content in parts, joined. Many templates would print the list itself."""
    fix = "write the content as text, or as a list of {type: text, text: ...}"
    if not isinstance(content, list):
        raise RowError(index, f"{where}: content is {_kind(content)}, not text", fix)
    for part in content:
        if not (isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str)):
            kind = part.get("type", "unknown") if isinstance(part, dict) else _kind(part)
            raise RowError(index, f"{where}: content has a part that is not text: {kind}", fix)
    return "".join(part["text"] for part in content)


def _kind(value: Any) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"
