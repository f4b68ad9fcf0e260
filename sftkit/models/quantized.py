"""How a model is quantized, read from its configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sftkit.models.adapters import base_of


def quantization_settings(model: Any) -> dict[str, Any]:
    """A loaded model's ``quantization_config`` as plain data; empty if it is not quantized."""
    settings = getattr(getattr(model, "config", None), "quantization_config", None) or {}
    return dict(settings if isinstance(settings, dict) else settings.to_dict())


def quantization_of(name: str) -> dict[str, Any] | None:
    """The ``quantization_config`` of a local checkpoint, or of a local adapter's base; None if it has none."""
    try:
        base, _ = base_of(name)
        config = json.loads(Path(base, "config.json").read_text("utf-8"))
        found: dict[str, Any] | None = config.get("quantization_config")
        return found
    except Exception:  # the plugin that loads the model reports what is wrong with these files
        return None
