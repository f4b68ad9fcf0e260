"""JSON schemas that accept what sftkit accepts: numbers and truth values may also be text."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from sftkit.config.train_checks import BOUNDS
from sftkit.config.train_fields import DEFAULTS, allowed_fields

REFERENCE = r"\$\{[A-Za-z_]"  # to a variable of the environment, whose value is not known here
NUMBER = rf"^\s*[-+]?([0-9][0-9_]*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?\s*$|{REFERENCE}"
_WORDS = ("true", "false", "yes", "no", "on", "off", "t", "f", "y", "n", "1", "0")
_TRUTH = f"^({'|'.join(''.join(f'[{char}{char.upper()}]' if char.isalpha() else char for char in w) for w in _WORDS)})$"
TRUTH = f"{_TRUTH}|{REFERENCE}"
_ANYWHERE: list[dict[str, Any]] = [{"type": "null"}, {"type": "string", "pattern": REFERENCE}]
NONE = "^([nN][oO][nN][eE]|[nN][uU][lL][lL])$"


def lenient(schema: Any, numbers_as_text: bool = False) -> Any:
    """A schema of pydantic's that also accepts text of a number or a truth value, as YAML reads ``2e-5``.

    Args:
        schema: made by pydantic; it is not changed.
        numbers_as_text: whether a number may stand for text, as in the options of plugins.
    """
    if isinstance(schema, list):
        return [lenient(item, numbers_as_text) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        key: value if key in ("default", "const", "enum", "description") else lenient(value, numbers_as_text)
        for key, value in schema.items()
    }
    match schema.get("type"):
        case "number" | "integer" as kind:
            return {**made, "type": [kind, "string"], "pattern": NUMBER}
        case "boolean":
            return {**made, "type": ["boolean", "number", "string"], "pattern": TRUTH, "minimum": 0, "maximum": 1}
        case "string" if numbers_as_text and "enum" not in schema and "const" not in schema:
            return {**made, "type": ["string", "number"]}
    return made


def nullable(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a mapping in which null stands for the default of any key, and a reference for a variable."""
    properties = {name: _or_null(item) for name, item in schema.get("properties", {}).items()}
    return {**schema, "properties": properties} if properties else schema


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    kind = schema.get("type")
    if kind is not None and not {"enum", "const"} & schema.keys():
        kinds = kind if isinstance(kind, list) else [kind]
        return schema if "null" in kinds else {**schema, "type": [*kinds, "null"]}
    if "anyOf" in schema:
        further = [item for item in _ANYWHERE if item not in schema["anyOf"]]
        return {**schema, "anyOf": [*schema["anyOf"], *further]}
    if "enum" in schema or "const" in schema or "$ref" in schema:
        return {"anyOf": [schema, *_ANYWHERE]}
    return schema


def train_schema() -> dict[str, Any]:
    """The schema of the section ``train``."""
    properties = {}
    for name, field in allowed_fields().items():
        schema = {} if field.annotation is Any else lenient(TypeAdapter(field.annotation).json_schema())
        if forms := _further_forms(schema):
            schema = {"anyOf": [schema, *forms]}
        default = DEFAULTS.get(name, field.default)
        properties[name] = {**_bounded(name, schema), "default": default, "description": field.help}
    return nullable({"type": ["object", "null"], "additionalProperties": False, "properties": properties})


def _further_forms(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """YAML reads ``no`` as false; and ``none`` may be text where no other text is allowed."""
    members = schema.get("anyOf", [schema])
    forms: list[dict[str, Any]] = []
    if any("no" in member.get("enum", ()) for member in members):
        forms.append({"const": False})
    if {"type": "null"} in members and not any(
        member.get("type") == "string" and len(member) == 1 for member in members
    ):
        forms.append({"type": "string", "pattern": NONE})
    return forms


def _bounded(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with the range of the field, which only applies to numbers."""
    if name not in BOUNDS:
        return schema
    bounds = BOUNDS[name]
    least = "exclusiveMinimum" if bounds.open else "minimum"
    most = "exclusiveMaximum" if bounds.open_end else "maximum"
    return {**schema, least: bounds.least, most: bounds.most}
