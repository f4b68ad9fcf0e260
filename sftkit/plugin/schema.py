"""The JSON schema of a configuration: the sections, the fields of TrainingArguments, and the plugins' options."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from sftkit.config.models import DataSection, ModelSection
from sftkit.config.train_fields import train_schema
from sftkit.errors import ConfigError


def config_schema() -> dict[str, Any]:
    """The schema; a plugin that cannot be imported is listed without its options."""
    plugins = _plugins()
    named = {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "object"}]}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "sftkit run",
        "type": "object",
        "additionalProperties": False,
        "required": ["model", "data"],
        "properties": {
            "model": {"anyOf": [{"type": "string"}, ModelSection.model_json_schema()]},
            "data": {"anyOf": [{"type": "string"}, DataSection.model_json_schema()]},
            "train": train_schema(),
            "plugins": {"anyOf": [plugins, named]},
        },
    }


def _plugins() -> dict[str, Any]:
    from sftkit.plugin.registry import discover, load_class

    known = discover()
    properties: dict[str, Any] = {}
    for name in known:
        try:
            options = TypeAdapter(load_class(name, known)).json_schema()
        except ConfigError as error:
            options = {"type": "object", "description": str(error)}
        properties[name] = {"anyOf": [options, {"type": "null"}, {"const": False}]}
    # `package.module:Class` names a plugin that is not installed.
    own = {"^[\\w.]+:\\w+$": {"type": ["object", "null"]}}
    return {"type": "object", "properties": properties, "patternProperties": own, "additionalProperties": False}
