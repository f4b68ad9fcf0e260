"""Directories that hold an adapter instead of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sftkit.errors import ConfigError, Problem

ADAPTER_CONFIG = "adapter_config.json"


def is_adapter(name: str) -> bool:
    """Whether a name is a local directory with an adapter."""
    return Path(name, ADAPTER_CONFIG).is_file()


def base_of(name: str, revision: str | None = None) -> tuple[str, str | None]:
    """Name and revision of the base model of an adapter's directory; for any other model, the arguments.

    Raises:
        ConfigError: if the adapter's configuration cannot be read, or names no base model.
    """
    if not is_adapter(name):
        return name, revision
    path = Path(name, ADAPTER_CONFIG)
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        base = config.get("base_model_name_or_path")
    except (ValueError, AttributeError) as error:
        raise ConfigError(Problem(f"not a valid JSON object: {error}", str(path), "save the adapter again")) from error
    if not base:
        raise ConfigError(Problem("no base_model_name_or_path", str(path), "add the base model's name"))
    return str(base), config.get("revision")
