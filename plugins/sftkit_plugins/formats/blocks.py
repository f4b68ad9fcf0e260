"""Contents in blocks, as OpenAI, Anthropic, Bedrock Converse and Gemini have them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sftkit.api import RowError

_TEXTS = ("text", "input_text", "output_text")
_CALLS = ("toolUse", "functionCall", "function_call")
_RESULTS = ("toolResult", "functionResponse", "function_response")
#: The only key of a block whose kind is its key: of Bedrock, and of Gemini.
_SOLE = (*_CALLS, *_RESULTS, "reasoningContent", "image", "video", "document", "inlineData", "inline_data")
_KNOWN = {
    *(*_CALLS, *_RESULTS, "reasoningContent", "type", "text", "thought", "thinking"),
    *("id", "toolUseId", "tool_use_id", "name", "input", "args", "content", "response"),
}
_FIX = "write the content as text, or as a list of {type: text, text: ...}"


@dataclass
class Blocks:
    """What the blocks of one content hold.

    Attributes:
        texts: the texts, in order.
        reasoning: the reasoning, in order.
        calls: tool calls, in a form that `read_calls` reads.
        results: the results of tools, each with the keys ``content``, and ``tool_call_id`` and ``name`` if known.
        unread: the keys of blocks that say something else, such as ``is_error``.
    """

    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)


def read_blocks(content: Any, index: int, where: str, clean: Callable[[Any], Any]) -> Blocks:
    """The blocks of a content.

    Args:
        content: a list of blocks or texts, or ``{"parts": [...]}``, or one block.
        index: position of the row in its batch, for errors.
        where: the column and the message, for errors.
        clean: removes the nulls that the store of the data added to the results of tools.

    Raises:
        RowError: if it is not a list of blocks, or a block is of a kind that is not text, such as an image.
    """
    blocks = Blocks()
    if isinstance(content, Mapping):
        content = content.get("parts", [content])
    if not isinstance(content, list):
        raise RowError(index, f"{where}: content is of type {type(content).__name__}, not text", _FIX)
    for raw in content:
        raw = {"text": raw} if isinstance(raw, str) else raw
        block = {key: value for key, value in raw.items() if value is not None} if isinstance(raw, dict) else raw
        if not isinstance(block, dict) or not _read(block, blocks, clean):
            kind = _kind(block) if isinstance(block, dict) else f"of type {type(block).__name__}"
            raise RowError(index, f"{where}: content has a part that is not text: {kind}", _FIX)
    return blocks


def is_value(content: Any) -> bool:
    """Whether a content is the result of a tool as a value, such as ``{"degrees": 21}``, rather than text or blocks."""
    if isinstance(content, list):
        return bool(content) and not any(isinstance(item, str) or is_block(item) for item in content)
    return isinstance(content, bool | int | float) or (isinstance(content, Mapping) and not is_block(content))


def is_block(value: Any) -> bool:
    """Whether a value is a block of a content, of any kind."""
    return isinstance(value, Mapping) and any(value.get(key) is not None for key in ("type", "text", "parts", *_SOLE))


def _read(block: dict[str, Any], blocks: Blocks, clean: Callable[[Any], Any]) -> bool:
    """Adds one block; False if its kind is unknown."""
    kind = block.get("type", "text")
    key = next((key for key in (*_CALLS, *_RESULTS, "reasoningContent") if isinstance(block.get(key), dict)), None)
    inside = block[key] if key in (*_CALLS, *_RESULTS) else {}
    blocks.unread.update(name for name, value in {**block, **inside}.items() if name not in _KNOWN and value)
    if kind == "tool_use" or key in _CALLS:
        call = block if key is None else block[key]
        blocks.calls.append(_named(call, id=("id", "toolUseId"), name=("name",), arguments=("input", "args")))
    elif kind == "tool_result" or key in _RESULTS:
        result = block if key is None else block[key]
        said = _named(result, tool_call_id=("tool_use_id", "toolUseId", "id"), name=("name",))
        content = clean(_content_of(result))
        if isinstance(content, list) and any(is_block(part) and not _is_result(part) for part in content):
            return False
        blocks.results.append({**said, "content": result_text(content)})
    elif key == "reasoningContent":
        inner = block[key].get("reasoningText", block[key])
        blocks.reasoning.append(inner.get("text", "") if isinstance(inner, dict) else str(inner))
    elif kind in ("thinking", "reasoning") and (thought := _thought(block.get("thinking", block.get("text")))):
        blocks.reasoning.append(thought)
    elif kind in _TEXTS and isinstance(block.get("text"), str):
        (blocks.reasoning if block.get("thought") else blocks.texts).append(block["text"])
    else:
        return False
    return True


def _thought(value: Any) -> str:
    """A reasoning text, which Mistral writes as a list of text blocks; empty for anything else."""
    parts = value if isinstance(value, list) else [{"text": value}]
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    return "".join(text for text in texts if isinstance(text, str))


def _is_result(part: Mapping[str, Any]) -> bool:
    return part.get("text") is not None or part.get("json") is not None


def _named(value: Mapping[str, Any], **names: Sequence[str]) -> dict[str, Any]:
    """The first of some keys that a mapping has, under one name each."""
    found = {new: next((value[key] for key in keys if value.get(key) is not None), None) for new, keys in names.items()}
    return {key: item for key, item in found.items() if item is not None}


def _content_of(result: Mapping[str, Any]) -> Any:
    found = (result[key] for key in ("content", "response") if result.get(key) is not None)
    return next(found, "")


def result_text(content: Any) -> str:
    """The result of a tool as text: texts are joined, and anything else is written as JSON."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        parts = [{key: value for key, value in part.items() if value is not None} for part in content]
        if all("text" in part or "json" in part for part in parts):
            return "".join(part["text"] if "text" in part else _json(part["json"]) for part in parts)
    return _json(content)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _kind(block: Mapping[str, Any]) -> str:
    return str(block.get("type") or next(iter(block), "empty"))
