"""TRL 0.11's API for supervised fine-tuning, on top of sftkit's stages and plugins.

A script of 2024 runs with one line changed: ``from sftkit_trl import SFTConfig, SFTTrainer``.
`docs/from-trl.md` shows each kind of run as a script, as a configuration file and as a `Pipeline` call.
"""

from __future__ import annotations

import importlib
from typing import Any

#: Module to the names that come from it; it is imported when one of them is first used.
_MODULES = {
    "arguments": "SFTConfig",
    "model_arguments": "ModelConfig get_kbit_device_map get_peft_config get_quantization_config",
    "parser": "SFTScriptArguments SftScriptArguments TrlParser",
    "commands": "init_zero_verbose",
    "extras": "FORMAT_MAPPING ConstantLengthDataset get_formatting_func_from_dataset",
    "models": "ChatMlSpecialTokens setup_chat_format",
    "collators": "DataCollatorForCompletionOnlyLM",
    "callbacks": "RichProgressCallback",
    "trainer": "SFTTrainer",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sftkit_trl' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sftkit_trl.{_HOMES[name]}"), name)
