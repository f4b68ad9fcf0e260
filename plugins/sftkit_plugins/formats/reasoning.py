"""Reasoning written into contents, passed to templates that have a field for it."""

from __future__ import annotations

import re
from typing import Any

from sftkit_plugins.formats.messages import REASONING
from sftkit_plugins.formats.probes import Probes
from sftkit_plugins.formats.rendering import Messages

MOVED_NOTE = "<think> in the content passed to the template as reasoning_content"
_INLINE = re.compile(r"\s*<think>(.*?)</think>\s*(.*)", re.DOTALL)


def with_field(messages: Messages, probes: Probes) -> tuple[Messages, bool]:
    """Messages whose inline ``<think>`` is in the field that the template reads.

    A content stays as it is if the template has no such field, or writes the same for both.

    Returns:
        The messages, and whether any was changed.
    """
    changed: dict[int, dict[str, Any]] = {}
    for number, message in enumerate(messages):
        content = message.get("content")
        if message["role"] != "assistant" or not isinstance(content, str) or "</think>" not in content:
            continue
        found = _INLINE.fullmatch(content)
        if found is None or any(key in message for key in REASONING):
            continue
        thought, answer = found.groups()
        if probes.needs_field(bool(thought.strip())):
            thought = thought.strip("\n")
            changed[number] = {**message, "content": answer, "reasoning_content": thought, "thinking": thought}
    return [changed.get(number, message) for number, message in enumerate(messages)], bool(changed)
