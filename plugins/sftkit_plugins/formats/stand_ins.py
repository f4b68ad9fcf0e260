"""Conversations with a stand-in in place of each text, so that a rendered text shows where each of them is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sftkit_plugins.formats.messages import REASONING
from sftkit_plugins.formats.rendering import Messages
from sftkit_plugins.formats.source import Source

TOOLS, DOCUMENTS = -1, -2
"""The owners of leaves that belong to no message."""

# A stand-in begins and ends with private-use characters: templates do not split or strip them. They may be escaped in
# the output. Numbers and ids have the form that templates expect of them.
STAND_IN = re.compile(
    r"(?:\ue0f0|\\+ue0f0)(\d+)(?:\ue0f1|\\+ue0f1)|918273645(\d{4})(?:\.5)?(?!\d)|zQ(\d{5})Xv",
)
_ID = re.compile(r"[a-zA-Z0-9]{9}")


@dataclass(frozen=True)
class Leaf:
    """A text of the row.

    Attributes:
        owner: the number of its message, `TOOLS` or `DOCUMENTS`.
        kind: ``content``, ``blank`` (a content without text), ``thinking``, ``reasoning``, ``name``, ``argument``,
            ``id``, ``label`` (a name or id that need not be rendered), ``tool`` or ``document``.
        place: what it is, for messages to the user.
        call: the number of its tool call in the message.
    """

    owner: int
    kind: str
    place: str = ""
    call: int = 0


@dataclass
class StandIns:
    """Replaces the texts of one row.

    Args:
        source: the facts about the template.
        full: whether to replace everything. If not, tools, names, ids, numbers and empty contents are kept.

    Attributes:
        leaves: the replaced texts, in the order of their stand-ins.
        values: the texts themselves.
        ends: by message, what is kept of a content after its last stand-in, because the template looks for it.
    """

    source: Source
    full: bool = True
    leaves: list[Leaf] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    ends: dict[int, str] = field(default_factory=dict)
    _ids: dict[str, str] = field(default_factory=dict)

    def messages(self, messages: Messages) -> Messages:
        """The messages with stand-ins."""
        return [self._message(number, message) for number, message in enumerate(messages)]

    def tools(self, tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
        """Descriptions of tools with stand-ins for their names and descriptions."""
        if tools is None or not self.full:
            return tools
        return [self._tool(number, tool) for number, tool in enumerate(tools, start=1)]

    def variables(self, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        """Variables with stand-ins for the texts of ``documents``."""
        documents = variables.get("documents")
        if not isinstance(documents, list):
            return variables
        leaf = [Leaf(DOCUMENTS, "document", f"document {number}") for number in range(1, len(documents) + 1)]
        masked = [self._nested(document, leaf[at]) for at, document in enumerate(documents)]
        return {**variables, "documents": masked}

    def _message(self, number: int, message: dict[str, Any]) -> dict[str, Any]:
        masked = dict(message)
        reasoning = next((message[key] for key in REASONING if isinstance(message.get(key), str)), "")
        if reasoning.strip():
            text = self._cut(reasoning, Leaf(number, "reasoning"))
            masked.update((key, text) for key in REASONING if message.get(key) == reasoning)
        content = message.get("content")
        calls = message.get("tool_calls")
        if isinstance(content, str):
            if content.strip():
                masked["content"] = self._content(number, message["role"], content)
            elif self.full and not calls and not reasoning.strip():
                masked["content"] = self._stand_in(content, Leaf(number, "blank"))
        if calls:
            masked["tool_calls"] = [self._call(number, at, call) for at, call in enumerate(calls, start=1)]
        if self.full:
            if isinstance(message.get("tool_call_id"), str):
                masked["tool_call_id"] = self._id(message["tool_call_id"], Leaf(number, "label"))
            if isinstance(message.get("name"), str) and message["role"] in ("tool", "function"):
                masked["name"] = self._stand_in(message["name"], Leaf(number, "label"))
        return masked

    def _content(self, number: int, role: str, content: str) -> str:
        if role != "assistant":
            return self._cut(content, Leaf(number, "content"))
        end = max((content.rfind(tag) + len(tag) for tag in self.source.thought_ends if tag in content), default=0)
        thought = self._cut(content[:end], Leaf(number, "thinking"))
        return thought + self._cut(content[end:], Leaf(number, "content"))

    def _cut(self, text: str, leaf: Leaf) -> str:
        """A text with stand-ins between the keywords of the template, which are kept."""
        keywords = [word for word in self.source.keywords if word in text]
        if leaf.kind == "argument":
            keywords += [character for character in self.source.characters if character in text]
        pieces = re.split(f"({'|'.join(map(re.escape, keywords))})", text) if keywords else [text]
        texts = [at for at in range(0, len(pieces), 2) if pieces[at].strip()]
        if not texts:  # nothing but what the template looks for
            return self._stand_in(text, leaf) if self.full and text.strip() and leaf.kind != "thinking" else text
        if leaf.kind == "content":
            self.ends[leaf.owner] = "".join(pieces[texts[-1] + 1 :])
        return "".join(self._stand_in(piece, leaf) if at in texts else piece for at, piece in enumerate(pieces))

    def _call(self, number: int, at: int, call: dict[str, Any]) -> dict[str, Any]:
        function = call.get("function", call)
        place = f"tool call {at}" if at > 1 else "tool call"
        changed = dict(function)
        if self.full and isinstance(function.get("name"), str):
            changed["name"] = self._stand_in(function["name"], Leaf(number, "name", place, at))
        if "arguments" in function:
            changed["arguments"] = self._arguments(function["arguments"], Leaf(number, "argument", place, at))
        masked = {**call, "function": changed} if "function" in call else changed
        if self.full and isinstance(call.get("id"), str):
            name = function.get("name")
            if isinstance(name, str) and name and name in call["id"]:  # as in functions.look_up:0
                self._ids.setdefault(call["id"], call["id"].replace(name, changed["name"]))
            masked["id"] = self._id(call["id"], Leaf(number, "id", place, at))
        return masked

    def _arguments(self, arguments: Any, leaf: Leaf) -> Any:
        if isinstance(arguments, str):  # JSON text, for a template that expects it
            return json.dumps(self._nested(json.loads(arguments), leaf), ensure_ascii=False)
        return self._nested(arguments, leaf)

    def _nested(self, value: Any, leaf: Leaf) -> Any:
        """A value with stand-ins for all texts and numbers in it, at any depth."""
        if isinstance(value, dict):
            return {key: self._nested(item, leaf) for key, item in value.items()}
        if isinstance(value, list):
            return [self._nested(item, leaf) for item in value]
        if isinstance(value, str) and value.strip():
            return self._cut(value, leaf)
        if self.full and type(value) in (int, float) and len(self.values) < 10_000:
            label = len(self.values)
            self._add(value, leaf)
            return int(f"918273645{label:04}") + (0.5 if isinstance(value, float) else 0)
        return value

    def _tool(self, number: int, tool: dict[str, Any]) -> dict[str, Any]:
        function = tool.get("function", tool)
        if not isinstance(function, dict):
            return tool
        name = function.get("name")
        if isinstance(name, str):
            name = self._stand_in(name, Leaf(TOOLS, "tool", f"the name of tool {number}"))
        changed = self._described(function, f"tool {number}") | ({"name": name} if isinstance(name, str) else {})
        return {**tool, "function": changed} if "function" in tool else changed

    def _described(self, value: Any, place: str) -> Any:
        if isinstance(value, list):
            return [self._described(item, place) for item in value]
        if not isinstance(value, dict):
            return value
        changed = {key: self._described(item, f"{place}, {key}") for key, item in value.items()}
        text = value.get("description")
        if isinstance(text, str) and text.strip():
            place = place.replace(", parameters, properties", ", parameters").replace(", parameters, ", ", parameter ")
            changed["description"] = self._stand_in(text, Leaf(TOOLS, "tool", f"the description of {place}"))
        return changed

    def _id(self, value: str, leaf: Leaf) -> str:
        """A stand-in for an id; equal ids have the same one."""
        if value not in self._ids:
            fits = _ID.fullmatch(value) and len(self.values) < 100_000
            self._ids[value] = f"zQ{len(self.values):05}Xv" if fits else f"\ue0f0{len(self.values)}\ue0f1"
            self._add(value, leaf)
        return self._ids[value]

    def _stand_in(self, value: str, leaf: Leaf) -> str:
        self._add(value, leaf)
        return f"\ue0f0{len(self.values) - 1}\ue0f1"

    def _add(self, value: Any, leaf: Leaf) -> None:
        self.values.append(value)
        self.leaves.append(leaf)


def forms(value: Any) -> Iterator[list[str]]:
    """How a template may write a value: as it is or stripped; as a second group, escaped in JSON, Python or HTML."""
    if not isinstance(value, str):
        yield list(dict.fromkeys((json.dumps(value), str(value))))
        return
    shapes = [value, value.strip(), value.lstrip(), value.rstrip()]
    shapes += [value.strip("\n"), value.lstrip("\n"), value.rstrip("\n")]
    yield list(dict.fromkeys(shapes))
    yield list(dict.fromkeys(escaped for shape in dict.fromkeys(shapes) for escaped in _escaped(shape)))


def _escaped(text: str) -> Iterator[str]:
    for ascii_only in (False, True):
        once = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        yield once
        yield json.dumps(once, ensure_ascii=ascii_only)[1:-1]
        yield re.sub(r"[<>&']", lambda found: f"\\u{ord(found[0]):04x}", once)
    yield repr(text)[1:-1]
    yield text.replace("'", "\\'")
    html = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    yield html
    yield html.replace("'", "&#39;").replace('"', "&#34;")
