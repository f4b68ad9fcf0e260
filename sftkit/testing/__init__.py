"""Tiny models, tokenizers and data for tests of plugins, ours and anyone's, and the checks of a plugin.

No network, no files needed. What is listed here is loaded on first use, so that pytest, which loads the fixtures of
`sftkit.testing.pytest_plugin` in every project, starts as quickly as without them.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from sftkit.testing.conformance import CheckResult, PluginReport, check_plugin, examine_plugin
    from sftkit.testing.plugins import packed_rows, plugin_set, run_problems
    from sftkit.testing.rows import sample_rows
    from sftkit.testing.tiny import CHATML, tiny_config, tiny_conversations, tiny_model, tiny_tokenizer

_HOMES = {
    "CHATML": "tiny",
    "tiny_config": "tiny",
    "tiny_conversations": "tiny",
    "tiny_model": "tiny",
    "tiny_tokenizer": "tiny",
    "sample_rows": "rows",
    "packed_rows": "plugins",
    "plugin_set": "plugins",
    "run_problems": "plugins",
    "CheckResult": "conformance",
    "PluginReport": "conformance",
    "check_plugin": "conformance",
    "examine_plugin": "conformance",
}

__all__ = [
    "CHATML",
    "CheckResult",
    "PluginReport",
    "check_plugin",
    "examine_plugin",
    "packed_rows",
    "plugin_set",
    "run_problems",
    "sample_rows",
    "tiny_config",
    "tiny_conversations",
    "tiny_model",
    "tiny_tokenizer",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sftkit.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sftkit.testing.{_HOMES[name]}"), name)
