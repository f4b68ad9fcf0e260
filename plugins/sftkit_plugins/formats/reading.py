"""Messages as found in data, converted to the form that chat templates expect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sftkit.api import RowError
from sftkit_plugins.formats import thoughts
from sftkit_plugins.formats.blocks import Blocks, is_value, read_blocks, result_text
from sftkit_plugins.formats.conversation import Message
from sftkit_plugins.formats.details import with_parts
from sftkit_plugins.formats.flags import DETAIL, FLAGS, READ, read_flags
from sftkit_plugins.formats.roles import NAMES, ROLES, is_call, role_of
from sftkit_plugins.formats.template_reads import TemplateReads
from sftkit_plugins.formats.tool_calls import are_tools, read_calls, without_nulls

PLAIN = {"role", "content"}
SENDERS = ("role", "from")
CONTENTS = ("content", "value", "message", "text", "parts")
CALL_KEYS = ("tool_calls", "function_call")
REASONING = thoughts.FIELDS
#: Keys of a message that hold descriptions of tools, as those of GLM-4 do.
TOOLS_INSIDE = ("tools", "functions")
HAS_TOOLS = "tools in a message"
"""A note for whoever reads the row: a message has tools, which the template does not read there."""
_READ = {*CALL_KEYS, *REASONING, *FLAGS}
_SHAREGPT = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_OTHER_ROLES = tuple(role for role in ROLES if role != "developer")
_SHAPE = "write each message as {role, content} or {from, value}"


@dataclass(frozen=True)
class Rules:
    """How messages are read.

    Attributes:
        reads: what the chat template reads; other keys of messages are left out, and noted.
        developer_as_system: whether messages of a developer become system messages.
        exact: whether nulls in tool calls are part of the data; a columnar store adds them to fill its columns.
    """

    reads: TemplateReads = field(default_factory=lambda: TemplateReads(keys=None))
    developer_as_system: bool = False
    exact: bool = False

    @property
    def clean(self) -> Callable[[Any], Any]:
        """Removes the nulls that are not part of the data."""
        return _unchanged if self.exact else without_nulls


def _unchanged(value: Any) -> Any:
    return value


def read_messages(
    value: Any, index: int, column: str, rules: Rules | None = None, notes: set[str] | None = None
) -> list[Message]:
    """The messages of one row as ``{role, content, ...}``.

    A returned message may be the object in the data: do not change it.

    Args:
        value: the list of messages.
        index: position of the row in its batch, for errors.
        column: the name of the column, for errors.
        rules: how messages are read.
        notes: gets a note for each key that is left out.

    Raises:
        RowError: for a value that is not a conversation; names the column and the message.
    """
    if not isinstance(value, list):
        raise RowError(index, f"column {column!r} is {kind(value)}, not a list of messages", _SHAPE)
    rules, notes = rules or Rules(), set() if notes is None else notes
    thinks, roles = rules.reads.moves_reasoning, _OTHER_ROLES if rules.developer_as_system else ROLES
    messages: list[Message] = []
    for number, raw in enumerate(value, start=1):
        if type(raw) is dict and len(raw) == 2:
            sender, content = raw.get("role"), raw.get("content")
            if type(content) is str and sender in roles and not (thinks and "<think>" in content):
                messages.append(raw)
                continue
            sender, content = raw.get("from"), raw.get("value")
            if type(content) is str and sender in _SHAREGPT and not (thinks and "<think>" in content):
                messages.append({"role": _SHAREGPT[sender], "content": content})
                continue
        reading = _Reading(index, f"column {column!r}, message {number}", rules, notes)
        for message, called in reading.messages(raw):
            if called and messages and _same_turn(messages[-1], message):
                before = messages.pop()
                message = {**before, "tool_calls": [*before.get("tool_calls", ()), *message["tool_calls"]]}
            messages.append(message)
    return messages


def _same_turn(before: Message, call: Message) -> bool:
    """Whether a call continues the assistant's turn before it, and adds nothing else to it."""
    same = before["role"] == "assistant" and all(before.get(flag) == call.get(flag) for flag in READ)
    return same and call.keys() <= {"role", "tool_calls", *READ}


@dataclass(frozen=True)
class _Reading:
    """Reads one message, which may become several: results of tools are messages of their own."""

    index: int
    where: str
    rules: Rules
    notes: set[str]

    def messages(self, raw: Any) -> list[tuple[Message, bool]]:
        """The messages, each with whether its role says that it is nothing but a tool call."""
        if not isinstance(raw, dict):
            raise RowError(self.index, f"{self.where} is {kind(raw)}, not a mapping", _SHAPE)
        given = {key: value for key, value in raw.items() if value is not None}
        sender, role = self._role(given)
        self._check_channel(given)
        at = next((key for key in CONTENTS if key in given), "content")
        content = given.pop(at, None)
        if is_call(sender):
            return [(self._checked({"role": "assistant"}, given, self._calls(content)), True)]
        if role == "tool" and is_value(content):
            content = result_text(self.rules.clean(content))
        if content is None or isinstance(content, str):
            return [(self._checked({"role": role, **({} if content is None else {"content": content})}, given), False)]
        blocks = read_blocks(content, self.index, self.where, self.rules.clean)
        self.notes.update(f"content part key {key} ignored" for key in blocks.unread)
        results = self._results(blocks, role)
        if results and not blocks.texts:
            return results
        text = {"content": "".join(blocks.texts)} if blocks.texts or not blocks.calls else {}
        if blocks.reasoning:
            given.setdefault("reasoning_content", "\n".join(blocks.reasoning))
        calls = self._calls(blocks.calls) if blocks.calls else []
        return [*results, (self._checked({"role": role, **text}, given, calls), False)]

    def _role(self, given: dict[str, Any]) -> tuple[str, str]:
        key = next((key for key in SENDERS if key in given), None)
        if key is None:
            raise RowError(self.index, f"{self.where} has no role", _SHAPE)
        sender = given.pop(key)
        role = role_of(sender) if isinstance(sender, str) else None
        if role is None:
            known = ", ".join(name for names in NAMES.values() for name in names)
            raise RowError(self.index, f"{self.where}: unknown role {sender!r}", f"use one of: {known}")
        return sender, "system" if role == "developer" and self.rules.developer_as_system else role

    def _check_channel(self, given: dict[str, Any]) -> None:
        """Refuses a message of gpt-oss that is no answer, unless the template reads its channel."""
        keys, channel = self.rules.reads.keys, given.get("channel")
        if channel is None or keys is None or "channel" in keys:
            return
        if given.pop("channel") != "final":
            fix = "write reasoning as reasoning_content of the message after it, and calls as tool_calls"
            raise RowError(self.index, f"{self.where} is in the channel {channel!r}, so it is no answer", fix)

    def _results(self, blocks: Blocks, role: str) -> list[tuple[Message, bool]]:
        if blocks.results and role == "assistant":
            what = f"{self.where}: an assistant message contains the result of a tool"
            raise RowError(self.index, what, "put it into a user or tool message after the call")
        return [
            ({"role": "tool", "content": result.pop("content"), **self._others(result)}, False)
            for result in blocks.results
        ]

    def _checked(self, message: Message, given: dict[str, Any], calls: list[dict[str, Any]] | None = None) -> Message:
        role = message["role"]
        message = {**message, **self._rest(given, role, calls or [])}
        if "content" not in message and not message.get("tool_calls"):
            said = ", but a refusal" if given.get("refusal") else ""
            fix = "fill in the content, or remove the row"
            raise RowError(self.index, f"{self.where} ({role}) has no content{said}", fix)
        whole = message.get("content", "")
        if role == "assistant" and self.rules.reads.moves_reasoning:
            empty = self.rules.reads.moves_empty
            message = thoughts.move_reasoning(message, self.index, self.where, also_empty=empty)
        details = given.get(DETAIL)
        return with_parts(message, details, whole, self.index, self.where) if details else message

    def _rest(self, given: dict[str, Any], role: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
        """Everything but role and content: reasoning, calls, other keys that the template reads, and flags."""
        rest: dict[str, Any] = {}
        if role == "assistant":
            rest = {key: given[key] for key in REASONING if key in given}
            thoughts.name_reasoning(rest, self.index, self.where)
        for key in CALL_KEYS:
            calls = calls + (self._calls(given[key]) if given.get(key) else [])
        if calls and role != "assistant":
            raise RowError(self.index, f"{self.where} ({role}) has tool calls", "give it the role assistant")
        if calls:
            rest["tool_calls"] = calls
        unread = {
            key: value for key, value in given.items() if key not in _READ or (key in REASONING and key not in rest)
        }
        return rest | self._others(unread) | read_flags(given, self.index, self.where)

    def _others(self, given: dict[str, Any]) -> dict[str, Any]:
        """The other keys that the template reads; those with a value that it does not read are noted."""
        keys = self.rules.reads.keys
        kept = {key: self.rules.clean(value) for key, value in given.items() if keys is None or key in keys}
        for key in TOOLS_INSIDE:
            if key not in kept and are_tools(given.get(key)):
                kept[key] = given[key]
                self.notes.add(HAS_TOOLS)
        self.notes.update(
            f"message key {key} ignored" for key, value in given.items() if key not in kept and not _empty(value)
        )
        return kept

    def _calls(self, value: Any) -> list[dict[str, Any]]:
        return read_calls(value, self.index, self.where, clean=self.rules.clean)


def _empty(value: Any) -> bool:
    return isinstance(value, str | list | dict) and not value


def kind(value: Any) -> str:
    """What a value is, for errors."""
    return "null" if value is None else f"of type {type(value).__name__}"
