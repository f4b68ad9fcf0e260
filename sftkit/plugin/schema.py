"""The JSON schema of a configuration: the sections, the fields of TrainingArguments, and the plugins' options."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from sftkit.config.json_schema import lenient, nullable, train_schema
from sftkit.config.models import DataSection, EvaluateSection, ModelSection, RunSection
from sftkit.errors import ConfigError

_NAMES = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}


def config_schema() -> dict[str, Any]:
    """The schema; a plugin that cannot be imported is listed without its options."""
    plugins = _plugins()
    one = {"allOf": [plugins, {"minProperties": 1, "maxProperties": 1}]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "sftkit run",
        "type": "object",
        "additionalProperties": False,
        "required": ["model", "data"],
        "properties": {
            "model": {"anyOf": [{"type": "string"}, nullable(lenient(ModelSection.model_json_schema()))]},
            "data": {"anyOf": [*_NAMES["anyOf"], _data()]},
            "train": train_schema(),
            "evaluate": {"anyOf": [nullable(lenient(EvaluateSection.model_json_schema())), {"type": "null"}]},
            "run": {"anyOf": [nullable(lenient(RunSection.model_json_schema())), {"type": "null"}]},
            "plugins": {
                "anyOf": [plugins, {"type": "array", "items": {"anyOf": [{"type": "string"}, one]}}, {"type": "null"}]
            },
        },
    }


def _data() -> dict[str, Any]:
    def names(key: str) -> dict[str, Any]:
        return {"required": [key], "properties": {key: {"not": {"type": "null"}}}}

    return {**nullable(lenient(DataSection.model_json_schema())), "oneOf": [names("train"), names("mix")]}


def _plugins() -> dict[str, Any]:
    from sftkit.plugin.registry import discover, load_class

    known = discover()
    properties: dict[str, Any] = {}
    for name in known:
        try:
            options = nullable(lenient(TypeAdapter(load_class(name, known)).json_schema(), numbers_as_text=True))
        except ConfigError as error:
            options = {"type": "object", "description": str(error)}
        properties[name] = {"anyOf": [options, {"type": ["null", "boolean"]}]}
    # `package.module:Class` names a plugin that is not installed; `no:name` drops one, whatever its value is.
    others: dict[str, Any] = {"^[\\w.]+:\\w+$": {"type": ["object", "null", "boolean"]}, "^no:": {}}
    others |= {_spellings(name): {"type": ["object", "null", "boolean"]} for name in known}
    return {"type": "object", "properties": properties, "patternProperties": others, "additionalProperties": False}


def _spellings(name: str) -> str:
    """A pattern for the other spellings of a plugin's name: with hyphens and capitals."""
    letters = ("[-_]" if char in "-_" else f"[{char.lower()}{char.upper()}]" for char in name)
    return f"^{''.join(letters)}$"
