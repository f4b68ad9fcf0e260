"""Tool calls and tool descriptions, in the forms of OpenAI, Anthropic, Bedrock and Gemini, as templates expect them."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping
from typing import Any

from sftkit.api import RowError

Call = dict[str, Any]
"""``{"type": "function", "function": {"name": ..., "arguments": {...}}}``, and perhaps ``id``."""

_ARGUMENTS = ("arguments", "parameters", "input", "args")
_SCHEMAS = ("input_schema", "inputSchema", "parametersJsonSchema")
_CALL = '{"type": "function", "function": {"name": ..., "arguments": {...}}}'


def without_nulls(value: Any) -> Any:
    """A copy without keys whose value is None, at any depth: in a columnar store every row has every key."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value


def from_text(text: str) -> Any:
    """A list or mapping from JSON text, or from text as Python writes it, which CSV files often hold.

    Raises:
        json.JSONDecodeError: if it is neither.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            pass
        raise


def read_calls(value: Any, index: int, where: str, *, clean: Callable[[Any], Any]) -> list[Call]:
    """Tool calls with mappings as arguments; all of it or parts may be JSON text.

    Args:
        value: a list of calls, or one.
        index: position of the row in its batch, for errors.
        where: the column and the message, for errors.
        clean: removes the nulls that the store of the data added to arguments; those in JSON text are kept.

    Raises:
        RowError: if it is not that.
    """
    try:
        if isinstance(value, str):
            value, clean = from_text(value) if value.strip() else None, _unchanged
        calls = [value] if isinstance(value, dict) else value or []
        return [
            _read_call(from_text(call), _unchanged) if isinstance(call, str) else _read_call(call, clean)
            for call in calls
        ]
    except (TypeError, KeyError, ValueError) as error:
        what = f"{where}: cannot read the tool calls: {type(error).__name__}: {error}"
        raise RowError(index, what, f"write a list of {_CALL}, or this as JSON text") from None


def _unchanged(value: Any) -> Any:
    return value


def _read_call(call: Any, clean: Callable[[Any], Any]) -> Call:
    if not isinstance(call, dict):
        raise TypeError(f"a call is of type {type(call).__name__}, not a mapping")
    call = {key: value for key, value in call.items() if value is not None}
    if "function" in call:
        return {**call, "function": _read_function(call["function"], clean)}
    rest = {"id": call["id"]} if "id" in call else {}
    return {"type": "function", **rest, "function": _read_function(call, clean)}


def _read_function(function: Any, clean: Callable[[Any], Any]) -> dict[str, Any]:
    if not isinstance(function, dict) or not function.get("name"):
        raise KeyError("name")
    key = next((key for key in _ARGUMENTS if function.get(key) is not None), None)
    if key is None:
        return {"name": function["name"]}
    arguments = function[key]
    arguments = json.loads(arguments or "{}") if isinstance(arguments, str) else clean(arguments)
    if not isinstance(arguments, dict):
        raise TypeError(f"the arguments are of type {type(arguments).__name__}, not a mapping")
    return {"name": function["name"], "arguments": arguments}


def are_tools(value: Any) -> bool:
    """Whether a value describes tools: a mapping, or a list of mappings, or this as JSON text."""
    try:
        value = from_text(value) if isinstance(value, str) and value.strip() else value
    except ValueError:
        return False
    tools = [value] if isinstance(value, dict) else value
    return isinstance(tools, list) and bool(tools) and all(isinstance(tool, dict) for tool in tools)


def read_tools(value: Any, index: int, where: str, *, exact: bool = False) -> list[dict[str, Any]] | None:
    """The tools of one row as ``{"type": "function", "function": {...}}``; None if there are none.

    Args:
        value: a list of descriptions in any of the forms, or one; the list or its items may be JSON text.
        index: position of the row in its batch, for errors.
        where: the column, for errors.
        exact: whether nulls in the data are part of it.

    Raises:
        RowError: if it is not that.
    """
    fix = "use a list of tool descriptions (JSON schemas), or this as JSON text"
    try:
        tools = from_text(value) if isinstance(value, str) and value.strip() else value
        if isinstance(tools, dict) and isinstance(tools.get("tools"), list):  # Bedrock: toolConfig
            tools = tools["tools"]
        tools = [tools] if isinstance(tools, dict) else tools
        if not tools:
            return None
        if isinstance(tools, list):
            tools = [from_text(tool) if isinstance(tool, str) else _cleaned(tool, exact) for tool in tools]
    except json.JSONDecodeError as error:
        raise RowError(index, f"{where} is not valid JSON: {error}", fix) from None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        found = f"of type {type(tools).__name__}, not a list of mappings"
        raise RowError(index, f"{where} is {found}", fix)
    return [each for tool in tools for each in _described(tool)]


def _cleaned(tool: Any, exact: bool) -> Any:
    return tool if exact else without_nulls(tool)


def _described(tool: dict[str, Any]) -> list[dict[str, Any]]:
    """A description wrapped as servers send it; one of Gemini may hold several functions."""
    if isinstance(tool.get("function"), dict):
        return [tool]
    declared = tool.get("functionDeclarations", tool.get("function_declarations"))
    if isinstance(declared, list):
        return [_wrapped({**each, **_lower_types(each)}) for each in declared]
    if isinstance(tool.get("toolSpec"), dict):
        tool = tool["toolSpec"]
    if "name" not in tool:
        return [tool]
    return [_wrapped({key: value for key, value in tool.items() if key != "type"})]


def _wrapped(function: dict[str, Any]) -> dict[str, Any]:
    named = {"parameters" if key in _SCHEMAS else key: value for key, value in function.items()}
    schema = named.get("parameters")
    if isinstance(schema, dict) and schema.keys() == {"json"}:  # Bedrock
        named["parameters"] = json.loads(schema["json"]) if isinstance(schema["json"], str) else schema["json"]
    return {"type": "function", "function": named}


def _lower_types(function: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters with the types of JSON Schema: Gemini writes ``OBJECT`` for ``object``."""

    def lowered(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: lowered(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [lowered(item) for item in value]
        return value.lower() if key == "type" and isinstance(value, str) else value

    return {"parameters": lowered(function["parameters"])} if "parameters" in function else {}
