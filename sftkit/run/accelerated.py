"""What `accelerate launch` asks for in the environment, which transformers follows whatever the configuration says."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from sftkit.config.train_fields import SHARDING, train_value
from sftkit.errors import Problem
from sftkit.plugin.registry import plugin_advice
from sftkit.ranks import LAUNCH

if TYPE_CHECKING:
    from sftkit.config import RunConfig

#: Switches, what they ask for, and the field of `TrainingArguments` that asks for the same.
_SWITCHES = {
    "ACCELERATE_USE_FSDP": ("FSDP", "fsdp"),
    "ACCELERATE_USE_DEEPSPEED": ("DeepSpeed", "deepspeed"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("a parallelism_config", "parallelism_config"),
    "ACCELERATE_USE_MEGATRON_LM": ("Megatron-LM", ""),
}
#: Sizes of a parallelism_config that no plugin replaces.
_UNSUPPORTED = {
    "PARALLELISM_CONFIG_CP_SIZE": "context parallelism is not supported: use data.max_length, or tensor parallelism",
    "PARALLELISM_CONFIG_SP_SIZE": "sequence parallelism is not supported: use data.max_length, or tensor parallelism",
}


def accelerate_problems(config: RunConfig, variables: Mapping[str, str] | None = None) -> Iterator[Problem]:
    """Variables of accelerate that would shard the model, or choose a precision, besides the configuration.

    Args:
        config: the run as resolved.
        variables: the environment; by default that of this process.
    """
    known = os.environ if variables is None else variables
    for name, (what, field) in _SWITCHES.items():
        if known.get(name, "").strip().lower() not in ("1", "true", "yes", "on", "y", "t"):
            continue
        advice = f"{plugin_advice(field) or SHARDING[field]}; {LAUNCH}" if field else f"remove it; {LAUNCH}"
        sizes = [fix for size, fix in _UNSUPPORTED.items() if field == "parallelism_config" and _above_one(known, size)]
        yield Problem(f"accelerate launch asks for {what}", f"the variable {name}", sizes[0] if sizes else advice)
    precision = known.get("ACCELERATE_MIXED_PRECISION", "no").strip().lower()
    if precision not in ("", "no") and not (precision in ("fp16", "bf16") and train_value(config, precision)):
        fix = f"set train.{precision}: true, or unset it" if precision in ("fp16", "bf16") else "unset it"
        what = f"accelerate launch asks for mixed precision in {precision}, and the configuration does not"
        yield Problem(what, "the variable ACCELERATE_MIXED_PRECISION", fix)


def _above_one(variables: Mapping[str, str], name: str) -> bool:
    text = variables.get(name, "1").strip()
    return text.isdecimal() and int(text) > 1
