"""Write the tables of keys in docs/configuration.md from the models of the sections; a test compares them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import _pages

from sftkit.config.models import DataSection, EvaluateSection, ModelSection, RunSection

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
SECTIONS = {"model": ModelSection, "data": DataSection, "evaluate": EvaluateSection, "run": RunSection}
KINDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "array": "list",
    "object": "mapping",
}


def with_tables(text: str) -> str:
    """The page with the table of each section as its model declares it.

    Args:
        text: the page, with a line before and after each table.
    """
    for name, model in SECTIONS.items():
        text = _pages.between(PAGE, text, f"<!-- keys of {name} -->", f"<!-- /keys of {name} -->", table(model))
    return text


def table(model: Any) -> str:
    """The keys of a section, each with its type, its default and what it means."""
    schema = model.model_json_schema()
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, field in schema["properties"].items():
        rows.append(
            f"| `{key}` | {kind(field)} | {default(model, key)} | {field['description'].replace('|', chr(92) + '|')} |"
        )
    return "\n".join(rows)


def kind(schema: dict[str, Any]) -> str:
    """The type of a value, in words."""
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        kinds = [kind(item) for item in schema["anyOf"] if item.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    return KINDS[schema["type"]] + bounds(schema)


def bounds(schema: dict[str, Any]) -> str:
    """The range of a number, in words."""
    match schema:
        case {"exclusiveMinimum": least, "exclusiveMaximum": most}:
            return f" between {least:g} and {most:g}"
        case {"exclusiveMinimum": least}:
            return f" above {least:g}"
        case {"minimum": least, "maximum": most}:
            return f" from {least:g} to {most:g}"
        case {"minimum": least}:
            return f" from {least:g}"
    return ""


def default(model: Any, key: str) -> str:
    """The default of a key, as YAML has it."""
    field = model.model_fields[key]
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None:
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else re.sub(r'[.]0$', '', str(value))}`"


def pages() -> dict[Path, str]:
    """The page as it should be."""
    return {PAGE: with_tables(PAGE.read_text(encoding="utf-8"))}


if __name__ == "__main__":
    _pages.write(__doc__, "config_tables.py", pages)
