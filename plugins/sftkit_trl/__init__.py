"""TRL 0.11's API for supervised fine-tuning, on top of sftkit's stages and plugins.

A script of 2024 runs with one line changed: ``from sftkit_trl import SFTConfig, SFTTrainer``. Modules have the names of
TRL's; a script that uses `TrainingArguments` of transformers imports it from here too.
`docs/from-trl.md` shows each kind of run as a script, as a configuration file and as a `Pipeline` call.
"""

from __future__ import annotations

import importlib
from typing import Any

#: Module to the names that come from it; it is imported when one of them is first used.
_MODULES = {
    "arguments": "SFTConfig TrainingArguments",
    "model_arguments": "ModelConfig get_kbit_device_map get_peft_config get_quantization_config",
    "parser": "SFTScriptArguments ScriptArguments SftScriptArguments TrlParser",
    "commands.cli_utils": "init_zero_verbose",
    "core": "set_seed",
    "extras.dataset_formatting": (
        "ConstantLengthDataset conversations_formatting_function get_formatting_func_from_dataset "
        "instructions_formatting_function"
    ),
    "import_utils": (
        "is_bitsandbytes_available is_npu_available is_peft_available is_wandb_available is_xpu_available"
    ),
    "models.utils": "ChatMlSpecialTokens setup_chat_format",
    "collators": "DataCollatorForCompletionOnlyLM",
    "callbacks": "RichProgressCallback",
    "trainer.sft_trainer": "SFTTrainer",
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sftkit_trl' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sftkit_trl.{_HOMES[name]}"), name)
