"""Write the tables of keys in docs/configuration.md from the models of the sections; a test compares them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import _pages

from sftkit.config.models import DataSection, EvaluateSection, ModelSection, RunSection
from sftkit.plugin.option_types import as_yaml, option_type

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
SECTIONS = {"model": ModelSection, "data": DataSection, "evaluate": EvaluateSection, "run": RunSection}


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
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, field in model.model_fields.items():
        kind = option_type(Annotated[field.annotation, field], lambda value: f"`{value}`")
        default = "required" if field.is_required() else as_yaml(field.get_default(call_default_factory=True))
        shown = default if field.is_required() else f"`{default}`" if default else "none"
        rows.append(f"| `{key}` | {kind} | {shown} | {field.description.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def pages() -> dict[Path, str]:
    """The page as it should be."""
    return {PAGE: with_tables(PAGE.read_text(encoding="utf-8"))}


if __name__ == "__main__":
    _pages.write(__doc__, "config_tables.py", pages)
