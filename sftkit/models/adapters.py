"""Directories that hold an adapter instead of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sftkit.errors import ConfigError, Problem

ADAPTER_CONFIG = "adapter_config.json"
#: Beside an adapter: the arguments of ``from_pretrained`` with which the configuration of its base was changed.
BASE_CONFIG = "base_config.json"
#: Arguments that say how weights are stored, and not what they compute.
_STORAGE = {"dtype", "quantization_config"}


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


def base_options(name: str) -> dict[str, Any]:
    """The arguments of ``from_pretrained`` that change the configuration of an adapter's base, as it was trained.

    Empty for any other model, and for an adapter on an unchanged base.

    Raises:
        ConfigError: if their file cannot be read.
    """
    path = Path(name, BASE_CONFIG)
    if not is_adapter(name) or not path.is_file():
        return {}
    try:
        found: dict[str, Any] = dict(json.loads(path.read_text(encoding="utf-8")))
        return found
    except (ValueError, TypeError) as error:
        raise ConfigError(Problem(f"not a valid JSON object: {error}", str(path), "save the adapter again")) from error


def changed_configuration(model: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments of ``from_pretrained`` that are part of the configuration of the model."""
    known = model.config.to_dict().keys() - _STORAGE if options else ()
    return {name: value for name, value in options.items() if name in known}
