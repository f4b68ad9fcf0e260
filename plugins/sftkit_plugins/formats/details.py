"""``train_detail``: the parts of a message that are trained, as axolotl has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sftkit.api import RowError
from sftkit_plugins.formats.flags import DETAIL, weight_of
from sftkit_plugins.formats.rendering import RefusedError, Region

_KEYS = {"begin_offset", "end_offset", "train"}
_FORM = "write each part as {begin_offset, end_offset, train}, with the offsets of its first and last character"
_BEFORE = -1
"""The beginning of a part that starts before the content: it is trained from the beginning of the turn."""


def with_parts(message: dict[str, Any], details: Any, whole: str, index: int, where: str) -> dict[str, Any]:
    """A message with the regions of its content that are trained, under the key ``train_detail``.

    Characters that no part covers are not trained. If no character is trained, the whole turn is not.

    Args:
        message: as it is read, with its flags; it is not changed.
        details: the parts, each ``{begin_offset, end_offset, train}``; the character at ``end_offset`` belongs to it.
        whole: the content in the data, which the offsets count; a ``<think>`` block may have moved from its start.
        index: position of the row in its batch, for errors.
        where: the column and the number of the message, for errors.

    Raises:
        RowError: for invalid parts, parts or flags that contradict each other, and for parts of messages with tool
            calls or inside a block that has moved.
    """
    if message.get("tool_calls"):
        what = f"{where}: {DETAIL} has offsets in the content, but the message also has tool calls"
        raise RowError(index, what, "set train for the whole message, or put the calls into a message of their own")
    regions = _regions(details, len(whole), index, where)
    wanted = weight_of(message)
    if wanted is not None and bool(wanted) != bool(regions):
        parts = "parts" if regions else "no part"
        raise RowError(
            index, f"{where}: {DETAIL} trains {parts}, but a flag of the message says otherwise", "remove one"
        )
    if not regions:
        return {**message, "train": False}
    moved = len(whole) - len(message["content"])
    if any(start < moved and (start or end < moved) for start, end in regions):
        what = f"{where}: {DETAIL} trains a part of the <think> block, which the chat template reads as a whole"
        raise RowError(index, what, "train all of the block, or nothing of it")
    shifted = [(start - moved if start >= moved else _BEFORE, end - moved) for start, end in regions if end > moved]
    flags = {"train": True} if wanted is None else {}
    return {**message, **flags, DETAIL: shifted if moved else regions}


def _regions(details: Any, length: int, index: int, where: str) -> list[Region]:
    """The trained regions, in order, with the end after the last character; adjacent ones are joined."""
    if not isinstance(details, list):
        raise RowError(index, f"{where}: {DETAIL} is not a list of parts", _FORM)
    parts = sorted(_part(detail, length, index, f"{where}: {DETAIL}") for detail in details)
    joined: list[Region] = []
    ends = {True: 0, False: 0}
    for start, end, train in parts:
        if start < ends[not train]:
            what = f"{where}: {DETAIL} has parts that overlap at offset {start} and contradict each other"
            raise RowError(index, what, "let each character belong to one part")
        ends[train] = max(ends[train], end)
        if train and joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        elif train:
            joined.append((start, end))
    return joined


def _part(detail: Any, length: int, index: int, where: str) -> tuple[int, int, bool]:
    given = {key: value for key, value in detail.items() if value is not None} if isinstance(detail, Mapping) else {}
    if given.keys() != _KEYS:
        raise RowError(index, f"{where} has the part {detail!r}", _FORM)
    start, last, train = (detail[name] for name in ("begin_offset", "end_offset", "train"))
    if train not in (0, 1) or any(type(offset) is not int for offset in (start, last)):
        raise RowError(index, f"{where} has the part {dict(detail)!r}", _FORM)
    if not 0 <= start <= last < length:
        what = f"{where} has the offsets {start} to {last}, but the content has {length} characters"
        fix = f"use offsets from 0 to {length - 1}; {_FORM}" if length else f"remove {DETAIL}"
        raise RowError(index, what, fix)
    return start, last + 1, bool(train)


def narrowed(
    text: str, turn: Sequence[Region], parts: Sequence[Region], message: Mapping[str, Any], number: int
) -> Iterator[Region]:
    """The trained regions of a turn of which only parts are trained: these, and what closes the turn.

    Args:
        text: the rendered conversation.
        turn: the regions of the turn.
        parts: regions of the content, as `with_parts` returns them.
        message: the turn's message.
        number: its number, for errors.

    Raises:
        RefusedError: if the content cannot be found in the text.
    """
    low, high = turn[0][0], turn[-1][1]
    at, stripped = _place(text, low, high, message, number)
    content = message["content"]
    length = len(content.strip() if stripped else content)
    skipped = len(content) - len(content.lstrip()) if stripped else 0
    wanted = [
        (low if start == _BEFORE else at + max(start - skipped, 0), at + min(end - skipped, length))
        for start, end in parts
    ]
    for start, end in [*wanted, (at + length, high)]:
        for first, last in turn:
            if max(start, first) < min(end, last):
                yield max(start, first), min(end, last)


def _place(text: str, low: int, high: int, message: Mapping[str, Any], number: int) -> tuple[int, bool]:
    """Where the content begins, and whether the template strips it."""
    content, reasoning = message["content"], (message.get("reasoning_content") or "").strip()
    if reasoning and (found := text.find(reasoning, low, high)) >= 0:
        low = found + len(reasoning)
    for form in (content, content.strip()):
        if text.startswith(form, low):
            return low, form != content
        if form and text.count(form, low, high) == 1:
            return text.find(form, low, high), form != content
    what = f"the parts of message {number + 1} in {DETAIL} cannot be located in the chat template's output"
    raise RefusedError(what, "set train for the whole message, or use another template, such as -p chatml")
