"""TRL 0.11's API for supervised fine-tuning, on top of sftkit's stages and plugins.

A script of 2024 runs with its import line changed: ``from sftkit_trl import SFTConfig, SFTTrainer``.
`docs/from-trl.md` shows each kind of run as a script, a configuration file and a `Pipeline` call.
"""

from __future__ import annotations

import importlib
from typing import Any

_MODULES = {
    "arguments": (
        *("ModelConfig", "SFTConfig", "SFTScriptArguments", "SftScriptArguments", "TrlParser"),
        *("get_kbit_device_map", "get_peft_config", "get_quantization_config"),
    ),
    "commands": ("init_zero_verbose",),
    "extras": ("FORMAT_MAPPING", "ConstantLengthDataset", "get_formatting_func_from_dataset"),
    "models": ("ChatMlSpecialTokens", "setup_chat_format"),
    "collators": ("DataCollatorForCompletionOnlyLM",),
    "trainer": ("RichProgressCallback", "SFTTrainer"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sftkit_trl' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sftkit_trl.{_HOMES[name]}"), name)
