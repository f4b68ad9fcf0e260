"""Whether everything in a row is in its rendered text."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sftkit_plugins.formats.probes import Probes
from sftkit_plugins.formats.rendering import Messages, Refusal
from sftkit_plugins.formats.skeleton import Skeleton
from sftkit_plugins.formats.stand_ins import DOCUMENTS, TOOLS, Leaf

Part = Literal["system", "developer", "user", "assistant", "tool", "tools", "tool_calls", "documents"]
"""What a template may leave out if the option ``allow_left_out`` names it."""

REASONING_NOTE = "reasoning of earlier turns left out by the template"
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
    skeleton: Skeleton, leaves: Sequence[Leaf], messages: Messages, probes: Probes, allowed: Collection[str]
) -> Presence:
    """Check that a template leaves nothing out, except what is allowed and the reasoning of earlier turns.

    Args:
        skeleton: the conversation, rendered with stand-ins.
        leaves: what the stand-ins are for.
        messages: the conversation.
        probes: renders small conversations.
        allowed: what may be left out; see `Part`.

    Raises:
        Refusal: with the message, and what is left out of it.
    """
    shown = set(skeleton.order)
    missing = [leaf for number, leaf in enumerate(leaves) if number not in shown and leaf.kind not in ("blank", "id", "label")]
    missing += _hidden_calls(skeleton, leaves, messages)
    notes: list[str] = []
    without: set[int] = set()
    for leaf in missing:
        if leaf.kind in _THOUGHTS:
            _check_reasoning(leaf, messages, probes)
            without.add(leaf.owner)
            continue
        part = _part(leaf, messages)
        if part not in allowed:
            raise _left_out(leaf, messages, part, leaves, shown)
        notes.append(f"{_NAMES.get(part, f'{part} message')} left out by the template")
    if without:
        notes.append(REASONING_NOTE)
    return Presence(tuple(dict.fromkeys(notes)), frozenset(without))


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
    kind = ("assistant", True, True, False)
    if earlier and (leaf.kind == "thinking" or probes.shows(kind, "reasoning")):
        return
    field = next((key for key in ("reasoning_content", "thinking", "reasoning") if messages[number].get(key)), "")
    what = "thinking in the content" if leaf.kind == "thinking" else field
    fix = "use a template that renders it, or remove it from the data"
    if leaf.kind == "reasoning":
        fix += "; to train it anyway, write it into the content, as <think>...</think>"
    raise Refusal(f"the chat template leaves out the {what} of message {number + 1}", fix)


def _left_out(
    leaf: Leaf, messages: Messages, part: str, leaves: Sequence[Leaf], shown: Collection[int]
) -> Refusal:
    allow = f"; to train without it, set formats:allow_left_out={part}"
    if part in ("tools", "documents"):
        owned = [number for number, other in enumerate(leaves) if other.owner == leaf.owner]
        some = any(number in shown for number in owned)
        what = f"{leaf.place} of the row" if some else f"column {part!r}"
        fix = "use a template that renders it, or remove it from the data"
        return Refusal(f"the chat template leaves out {what if some else 'the ' + what}", fix + allow)
    role = messages[leaf.owner]["role"]
    if leaf.kind == "content":
        fix = "use a template that renders it, or remove it from the data"
        if role == "developer":
            fix = "write it as a system message, or use a template that renders it"
        return Refusal(f"the chat template leaves out the content of message {leaf.owner + 1} (role {role})", fix + allow)
    calls = messages[leaf.owner].get("tool_calls") or ()
    if len(calls) > 1 and any(leaves[number].owner == leaf.owner and leaves[number].kind == "argument" for number in shown):
        what, fix = f"tool call {leaf.call}", "use a template that renders parallel calls, or split the message"
    else:
        what, fix = "tool_calls", "use a template that renders it, or remove it from the data"
        if any(leaves[number].owner == leaf.owner and leaves[number].kind == "argument" for number in shown):
            what = f"{leaf.kind} of the tool call"
    return Refusal(f"the chat template leaves out the {what} of message {leaf.owner + 1}", fix + allow)
