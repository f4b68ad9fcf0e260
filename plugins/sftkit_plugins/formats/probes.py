"""What a template writes between the messages of small conversations, as evidence for those of the data."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from sftkit_plugins.formats.rendering import RejectedError, Rendering
from sftkit_plugins.formats.skeleton import Skeleton
from sftkit_plugins.formats.source import Source, source_of
from sftkit_plugins.formats.stand_ins import Leaf, StandIns

Kind = tuple[str, bool, bool, bool]
"""A role, and whether the message has reasoning, content and tool calls."""

START = ("start", False, False, False)
END = ("end", False, False, False)
PROMPT = ("prompt", False, False, False)
SYSTEM, DEVELOPER, USER, ASSISTANT, TOOL, FUNCTION = (
    (role, False, True, False) for role in ("system", "developer", "user", "assistant", "tool", "function")
)
CALL = ("assistant", False, False, True)
REASONED = ("assistant", True, True, False)

_TOOL = {"type": "object", "properties": {"key": {"type": "string", "description": "A key."}}, "required": ["key"]}
_TOOLS = [{"type": "function", "function": {"name": "look_up", "description": "Looks up a key.", "parameters": _TOOL}}]
_ID = "aB3dE6gH9"
_LEADING: Mapping[str, tuple[Kind, ...]] = {"assistant": (USER,), "tool": (USER, CALL), "function": (USER, CALL)}
"""The messages before a probed one, by its role."""


class CallForm(NamedTuple):
    """How a template expects tool calls.

    Attributes:
        content: what stands in place of a missing content.
        as_text: whether the arguments are JSON text.
    """

    content: Literal["keep", "empty", "null"]
    as_text: bool


CALL_FORMS = (
    *(CallForm("keep", False), CallForm("empty", False), CallForm("null", False)),
    *(CallForm("keep", True), CallForm("empty", True), CallForm("null", True)),
)
LABELS = ("name", "id", "label")
"""The kinds of leaves that a template may repeat in other messages."""

Probe = tuple[Skeleton, list[Leaf], int]
"""What was rendered, what its leaves are, and the number of the first message of the probe."""


def kind_of(message: Mapping[str, Any]) -> Kind:
    """The kind of a message."""
    if message["role"] != "assistant":
        return (message["role"], False, True, False)
    calls = bool(message.get("tool_calls"))
    return ("assistant", bool(message.get("reasoning_content")), not calls or bool(message.get("content")), calls)


@dataclass
class Probes:
    """Renders each small conversation once.

    Args:
        rendering: renders with the template.
        with_tools: whether the rows have tools.
        variables: further variables of the rows.
    """

    rendering: Rendering
    with_tools: bool
    variables: Mapping[str, Any]
    _gaps: dict[tuple[Kind, Kind], str | None] = field(default_factory=dict)
    _probes: dict[tuple[tuple[Kind, ...], bool], Probe | None] = field(default_factory=dict)
    _form: list[CallForm] = field(default_factory=list)
    _own: dict[Kind, frozenset[str]] = field(default_factory=dict)

    @property
    def source(self) -> Source:
        """The facts about the template."""
        return source_of(self.rendering.template)

    def gap(self, before: Kind, after: Kind) -> str | None:
        """The text from the end of one message to the first text of the next.

        Args:
            before: the kind of the first message; `START` for the beginning of the conversation.
            after: the kind of the next; `END` for the end of the conversation, `PROMPT` for a generation prompt.

        Returns:
            The text, or None if the template rejects such a conversation or leaves out one of the messages.
        """
        if (before, after) not in self._gaps:
            self._gaps[before, after] = self._find_gap(before, after)
        return self._gaps[before, after]

    def own_kinds(self, kind: Kind) -> frozenset[str]:
        """The kinds of leaves that the template writes into a message before the texts of the next one."""
        if kind not in self._own:
            leading = _LEADING.get(kind[0], ())
            rounds = ((*leading, kind), (*leading, kind, USER)) if kind[3] else ((*leading, kind),)
            self._own[kind] = frozenset().union(*(self._own_leaves(kinds, len(leading)) for kinds in rounds))
        return self._own[kind]

    def _own_leaves(self, kinds: tuple[Kind, ...], number: int) -> set[str]:
        found = self._render(kinds, False)
        if found is None:
            return set()
        skeleton, leaves, first = found
        owned = [(leaves[leaf].owner - first - number, leaves[leaf].kind) for leaf in skeleton.order]
        until = next((at for at, (owner, _) in enumerate(owned) if owner > 0), len(owned))
        return {kind for owner, kind in owned[:until] if owner == 0}

    def call_form(self) -> CallForm:
        """How the template expects tool calls; if it renders none in any form, as they usually are."""
        if not self._form:
            rounds = (USER, CALL, TOOL, ASSISTANT, USER, ASSISTANT), (USER, CALL)
            forms = (form for kinds in rounds for form in CALL_FORMS if self._renders_call(kinds, form))
            self._form.append(next(forms, CALL_FORMS[0]))
        return self._form[0]

    def _renders_call(self, kinds: tuple[Kind, ...], form: CallForm) -> bool:
        stand_ins = StandIns(self.source)
        messages = [in_form(message, form) for message in map(_message, kinds)]
        messages, tools = stand_ins.messages(messages), self._tools(stand_ins)
        try:
            text = self.rendering.text(messages, tools, stand_ins.variables(self.variables))
        except RejectedError:
            return False
        return "argument" in {stand_ins.leaves[leaf].kind for leaf in Skeleton.of(text).order}

    def _tools(self, stand_ins: StandIns) -> list[dict[str, Any]] | None:
        return stand_ins.tools(_TOOLS) if self.with_tools else None

    def _find_gap(self, before: Kind, after: Kind) -> str | None:
        kinds = _LEADING.get(before[0], ()) + (() if before == START else (before,))
        number = len(kinds) - 1
        if after not in (END, PROMPT):
            kinds += (after,)
        found = self._render(kinds, after == PROMPT)
        if found is None:
            return None
        skeleton, leaves, first = found
        owners = [leaves[leaf].owner for leaf in skeleton.order]
        if after not in (END, PROMPT) and first + number + 1 not in owners:
            return None
        if before == START and not kinds:
            return "".join(skeleton.literals)
        if before == START:
            return "\0".join(skeleton.literals[: owners.index(first) + 1])
        own = [place for place, owner in enumerate(owners) if owner == first + number]
        places = own_places(skeleton.order, leaves, self.own_kinds(before), own)
        if not places:
            return None
        last = places[-1]
        if after in (END, PROMPT) and all(leaves[leaf].kind in LABELS for leaf in skeleton.order[last + 1 :]):
            last = len(skeleton.order) - 1
        return skeleton.literals[last + 1]

    def _render(self, kinds: tuple[Kind, ...], prompt: bool) -> Probe | None:
        key = kinds, prompt
        if key not in self._probes:
            found = self._try(kinds, prompt)
            if found is None and kinds and kinds[0] == USER:
                found = self._try((SYSTEM, *kinds), prompt)
            self._probes[key] = found
        return self._probes[key]

    def _try(self, kinds: tuple[Kind, ...], prompt: bool) -> Probe | None:
        messages = list(map(_message, kinds))
        if any(kind[3] for kind in kinds):
            messages = [in_form(message, self.call_form()) for message in messages]
        stand_ins = StandIns(self.source)
        messages, tools = stand_ins.messages(messages), self._tools(stand_ins)
        try:
            text = self.rendering.text(messages, tools, stand_ins.variables(self.variables), prompt=prompt)
        except RejectedError:
            return None
        return Skeleton.of(text), stand_ins.leaves, int(kinds[:1] == (SYSTEM,) and kinds[1:2] == (USER,))


def own_places(order: Sequence[int], leaves: Sequence[Leaf], kinds: Collection[str], among: Iterable[int]) -> list[int]:
    """The positions in ``order`` of the texts of a message that belong to its turn.

    Args:
        order: the leaves of a skeleton.
        leaves: what each leaf is.
        kinds: the kinds of leaves that the template writes into such a turn. Names and ids may be repeated elsewhere.
        among: the positions of all its texts, in order.
    """
    among = list(among)
    seen: set[int] = set()
    places: list[int] = []
    waiting: list[int] = []  # repetitions, which belong to the turn if a text of it follows directly
    for place in among:
        leaf = order[place]
        if waiting and place != waiting[-1] + 1:
            waiting = []
        if leaves[leaf].kind not in LABELS:
            places += [*waiting, place]
            waiting = []
        elif leaf not in seen and leaves[leaf].kind in kinds:
            places.append(place)
        else:
            waiting.append(place)
        seen.add(leaf)
    return places


def in_form(message: dict[str, Any], form: CallForm) -> dict[str, Any]:
    """A message with its tool calls as a template expects them."""
    if not message.get("tool_calls"):
        return message
    message = dict(message)
    if form.content != "keep" and not message.get("content"):
        message["content"] = "" if form.content == "empty" else None
    if form.as_text:
        message["tool_calls"] = [_as_text(call) for call in message["tool_calls"]]
    return message


def _as_text(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function", call)
    if isinstance(function.get("arguments"), str) or "arguments" not in function:
        return call
    changed = {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}
    return {**call, "function": changed} if "function" in call else changed


def _message(kind: Kind) -> dict[str, Any]:
    role, reasoned, content, calls = kind
    message: dict[str, Any] = {"role": role}
    if content:
        message["content"] = f"Some {role} text"
    if role in ("tool", "function"):
        message |= {"name": "look_up", "tool_call_id": _ID}
    if reasoned:
        message |= {"reasoning_content": "Some thought", "thinking": "Some thought"}
    if calls:
        function = {"name": "look_up", "arguments": {"key": "Some value"}}
        message["tool_calls"] = [{"type": "function", "id": _ID, "function": function}]
    return message
