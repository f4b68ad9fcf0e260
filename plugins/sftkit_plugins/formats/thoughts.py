"""The reasoning of the assistant: in a field of its own, or at the start of the content."""

from __future__ import annotations

import re
from typing import Any

from sftkit.api import RowError

FIELDS = ("reasoning_content", "thinking", "reasoning")
_INLINE = re.compile(r"\s*<think>(.*?)</think>\n*", re.DOTALL)


def name_reasoning(message: dict[str, Any], index: int, where: str) -> None:
    """Store the reasoning of an assistant's message under each name that templates use. Changes the message.

    Recent releases of transformers do the same.

    Raises:
        RowError: if it is not text, or given twice in different words.
    """
    given = {key: message[key] for key in FIELDS if message.get(key) is not None}
    if not given:
        return
    for key, value in given.items():
        if not isinstance(value, str):
            fix = "write the reasoning as text, or remove the key"
            raise RowError(index, f"{where}: {key} is of type {type(value).__name__}, not text", fix)
    if len(set(given.values())) > 1:
        raise RowError(index, f"{where}: {' and '.join(given)} differ", "keep one of these keys")
    reasoning = next(iter(given.values()))
    message.update(dict.fromkeys(FIELDS, reasoning))


def move_reasoning(message: dict[str, Any], index: int, where: str, *, also_empty: bool) -> dict[str, Any]:
    """An assistant's message with the ``<think>`` block at the start of its content in the field for reasoning.

    Args:
        message: the message, with text as content; it is not changed.
        index: position of the row in its batch, for errors.
        where: the column and the number of the message, for errors.
        also_empty: whether a block without text stands for no reasoning, and is removed.

    Raises:
        RowError: if the message has other reasoning in its field.
    """
    content = message.get("content") or ""
    inline = _INLINE.match(content)
    if not inline:
        return message
    reasoning, field = inline[1].strip("\n"), message.get("reasoning_content")
    if field is not None and field.strip() != reasoning.strip():
        what = f"{where}: reasoning_content and the <think> block in the content differ"
        raise RowError(index, what, "keep one of the two")
    rest = {**message, "content": content[inline.end() :]}
    if not reasoning.strip():
        return rest if also_empty else message
    return {**rest, **dict.fromkeys(FIELDS, reasoning)}
