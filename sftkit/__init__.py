"""sftkit: supervised fine-tuning of language models, with every technique a plugin.

What is listed here is loaded on first use; importing the package loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as in typing, which `python -m sftkit` would look for in the working directory
if TYPE_CHECKING:
    from typing import Any

    from sftkit.data.documents import Formatter, RowError, Skipped, Span
    from sftkit.errors import ConfigError, DataError, Interrupted, Problem, RunError, SftkitError, TrainingError
    from sftkit.plugin.base import Field, Plugin, dataclass, hookimpl
    from sftkit.run.pipeline import Pipeline
    from sftkit.run.result import RunResult

#: The name on the package index, where `sftkit` is another project.
DISTRIBUTION = "sftkit-train"

_HOMES = {
    "Field": "plugin.base",
    "Plugin": "plugin.base",
    "dataclass": "plugin.base",
    "hookimpl": "plugin.base",
    "Pipeline": "run.pipeline",
    "RunResult": "run.result",
    "Formatter": "data.documents",
    "RowError": "data.documents",
    "Skipped": "data.documents",
    "Span": "data.documents",
    "ConfigError": "errors",
    "DataError": "errors",
    "Problem": "errors",
    "Interrupted": "errors",
    "RunError": "errors",
    "TrainingError": "errors",
    "SftkitError": "errors",
}

__all__ = [
    "ConfigError",
    "DataError",
    "Field",
    "Formatter",
    "Interrupted",
    "Pipeline",
    "Plugin",
    "Problem",
    "RowError",
    "RunError",
    "RunResult",
    "SftkitError",
    "Skipped",
    "Span",
    "TrainingError",
    "dataclass",
    "hookimpl",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version(DISTRIBUTION)
    if name not in _HOMES:
        raise AttributeError(f"module 'sftkit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sftkit.{_HOMES[name]}"), name)
