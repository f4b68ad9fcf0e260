"""Keys of nested mappings and lists, as paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flatten(values: Mapping[Any, Any], inside: tuple[str, ...]) -> dict[str, Any]:
    """The keys of a mapping; those whose parts have rules of their own are taken apart, and their parts have paths.

    Args:
        values: the mapping as it is in the file.
        inside: names of keys to take apart, at any depth; their empty mappings and lists stay whole.
    """
    found: dict[str, Any] = {}

    def add(path: str, name: str, value: Any) -> None:
        if name not in inside or not isinstance(value, dict | list) or not value:
            found[path] = value
            return
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            part = f"{path}.{key}" if isinstance(value, dict) else f"{path}[{key}]"
            if isinstance(item, dict) and item and isinstance(value, list):
                for inner, deep in item.items():
                    add(f"{part}.{inner}", str(inner), deep)
            else:
                add(part, str(key), item)

    for key, value in values.items():
        add(str(key), str(key), value)
    return found
