"""Whether everything in a row is in its rendered text."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from sftkit_plugins.formats.probes import CALL, REASONED, Probes
from sftkit_plugins.formats.rendering import Messages, RefusedError
from sftkit_plugins.formats.skeleton import Skeleton
from sftkit_plugins.formats.stand_ins import DOCUMENTS, TOOLS, Leaf, StandIns, forms

Part = Literal["system", "developer", "user", "assistant", "tool", "tools", "tool_calls", "documents"]
"""What a template may leave out if the option ``allow_left_out`` names it."""

REASONING_NOTE = "reasoning of earlier turns left out by the template (see formats:reasoning)"
_THOUGHTS = ("thinking", "reasoning")


@dataclass(frozen=True)
class Presence:
    """What a template leaves out of a row.

    Attributes:
        notes: what was left out and is allowed.
        reasoning: the turns whose reasoning was left out.
    """

    notes: tuple[str, ...] = ()
    reasoning: frozenset[int] = frozenset()


def check_presence(
    missing: Sequence[Leaf], shown: Collection[Leaf], messages: Messages, probes: Probes, allowed: Collection[str]
) -> Presence:
    """Check that a template leaves nothing out, except what is allowed and the reasoning of earlier turns.

    Args:
        missing: the texts that are not in the rendered conversation.
        shown: those that are.
        messages: the conversation.
        probes: renders small conversations.
        allowed: what may be left out; see `Part`.

    Raises:
        RefusedError: with the message, and what is left out of it.
    """
    notes: list[str] = []
    without: set[int] = set()
    for leaf in missing:
        if leaf.kind in ("blank", "id", "label"):
            continue
        if leaf.kind in _THOUGHTS:
            _check_reasoning(leaf, messages, probes)
            without.add(leaf.owner)
            continue
        part = _part(leaf, messages)
        if part not in allowed:
            raise _left_out(leaf, shown, messages, part, probes)
        notes.append(f"{_NAMES.get(part, f'{part} message')} left out by the template")
    if without:
        notes.append(REASONING_NOTE)
    return Presence(tuple(dict.fromkeys(notes)), frozenset(without))


def check_order(skeleton: Skeleton, leaves: Sequence[Leaf], messages: Messages) -> None:
    """Check that a template writes questions and answers in their order.

    System messages and results of tools may be moved, as some templates do.

    Raises:
        RefusedError: with the first message that is written too early.
    """
    highest = -1
    for leaf in dict.fromkeys(skeleton.order):
        owner = leaves[leaf].owner
        if leaves[leaf].kind != "content" or messages[owner]["role"] not in ("user", "assistant"):
            continue
        if owner < highest:
            first, second = (f"message {number + 1} (role {messages[number]['role']})" for number in (highest, owner))
            fix = "use a template that keeps the order of the messages"
            raise RefusedError(f"the chat template writes {first} before {second}", fix)
        highest = owner


def missing_leaves(skeleton: Skeleton, leaves: Sequence[Leaf], messages: Messages) -> list[Leaf]:
    """The texts that a template leaves out of a conversation rendered with stand-ins."""
    shown = set(skeleton.order)
    missing = [leaf for number, leaf in enumerate(leaves) if number not in shown]
    return missing + _hidden_calls(skeleton, leaves, messages)


def missing_in(text: str, stand_ins: StandIns, kinds: Collection[str] = ()) -> list[Leaf]:
    """The texts that are not found in a rendered conversation by searching for them.

    Args:
        text: the rendered conversation.
        stand_ins: has replaced the texts.
        kinds: the kinds of texts to look for; all if empty.
    """
    return [
        leaf
        for leaf, value in zip(stand_ins.leaves, stand_ins.values, strict=True)
        if (not kinds or leaf.kind in kinds) and not any(form in text for group in forms(value) for form in group)
    ]


_NAMES = {"tools": "tools", "tool_calls": "tool calls", "documents": "documents"}


def _part(leaf: Leaf, messages: Messages) -> str:
    if leaf.owner in (TOOLS, DOCUMENTS):
        return "tools" if leaf.owner == TOOLS else "documents"
    if leaf.kind != "content":
        return "tool_calls"
    role = messages[leaf.owner]["role"]
    return "tool" if role == "function" else role


def _hidden_calls(skeleton: Skeleton, leaves: Sequence[Leaf], messages: Messages) -> list[Leaf]:
    """Calls without a text or number in their arguments, if the keys of the arguments are not rendered."""
    known = {(leaf.owner, leaf.call) for leaf in leaves if leaf.kind == "argument"}
    text = ""
    hidden = []
    for number, message in enumerate(messages):
        for at, call in enumerate(message.get("tool_calls") or (), start=1):
            arguments = call.get("function", call).get("arguments")
            arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
            if (number, at) in known or not isinstance(arguments, dict):
                continue
            text = text or "".join(skeleton.literals)
            if not all(key in text for key in arguments):
                hidden.append(Leaf(number, "argument", "tool call", at))
    return hidden


def _check_reasoning(leaf: Leaf, messages: Messages, probes: Probes) -> None:
    """Check that it is that of an earlier turn, and that the template does not leave out all reasoning."""
    number = leaf.owner
    earlier = any(message["role"] in ("user", "assistant") for message in messages[number + 1 :])
    if earlier and (leaf.kind == "thinking" or "reasoning" in probes.own_kinds(REASONED)):
        return
    field = next((key for key in ("reasoning_content", "thinking", "reasoning") if messages[number].get(key)), "")
    what = "thinking in the content" if leaf.kind == "thinking" else field
    fix = "use a template that renders it, or remove it from the data"
    if leaf.kind == "reasoning":
        fix += "; to train it anyway, write it into the content, as <think>...</think>"
    raise RefusedError(f"the chat template leaves out the {what} of message {number + 1}", fix)


def _left_out(leaf: Leaf, shown: Collection[Leaf], messages: Messages, part: str, probes: Probes) -> RefusedError:
    fix = "use a template that renders it, or remove it from the data"
    if part in ("tools", "documents"):
        some = any(other.owner == leaf.owner for other in shown)
        what = f"{leaf.place} of the row" if some else f"the column {part!r}"
    elif leaf.kind == "content":
        what = f"the content of message {leaf.owner + 1} (role {messages[leaf.owner]['role']})"
        if part == "developer":
            fix = "write it as a system message, or use a template that renders it"
    else:
        what, fix = _call_left_out(leaf, shown, fix) if "argument" in probes.own_kinds(CALL) else ("tool_calls", fix)
        what = f"the {what} of message {leaf.owner + 1}"
    fix = f"{fix}; to train without it, set formats:allow_left_out={part}"
    return RefusedError(f"the chat template leaves out {what}", fix)


def _call_left_out(leaf: Leaf, shown: Collection[Leaf], fix: str) -> tuple[str, str]:
    """What is missing of the tool calls, and how to fix it."""
    calls = {other.call for other in shown if other.owner == leaf.owner and other.kind in ("argument", "name")}
    if calls and leaf.call not in calls:
        return f"tool call {leaf.call}", "use a template that renders parallel calls, or split the message"
    if leaf.kind == "name":
        fix = "use a template that renders it, or ids that contain it, as in functions.look_up:0"
    return f"{leaf.kind} of the tool call", fix
