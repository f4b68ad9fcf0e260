"""``trl.trainer.utils`` of 2024: what scripts import from it."""

from __future__ import annotations

from typing import Any

import torch

from sftkit_plugins.completion_only.collator import DataCollatorForCompletionOnlyLM
from sftkit_plugins.packing.stream import ConstantLengthDataset
from sftkit_trl.callbacks import RichProgressCallback
from sftkit_trl.model_arguments import get_kbit_device_map, get_peft_config, get_quantization_config

__all__ = [
    "SIMPLE_CHAT_TEMPLATE",
    "SIMPLE_SFT_CHAT_TEMPLATE",
    "ConstantLengthDataset",
    "DataCollatorForCompletionOnlyLM",
    "RichProgressCallback",
    "get_kbit_device_map",
    "get_peft_config",
    "get_quantization_config",
    "peft_module_casting_to_bf16",
]

SIMPLE_SFT_CHAT_TEMPLATE = "{% for message in messages %}{{ ' ' + message['content'] }}{% endfor %}{{ eos_token }}"
SIMPLE_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].capitalize() + ': ' + message['content'] + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)


def peft_module_casting_to_bf16(model: Any) -> None:
    """Cast the norms of a model to float32, and its embeddings and head to bfloat16. Changes the model."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.LayerNorm) or "norm" in name:
            module.to(torch.float32)
        elif any(part in name for part in ("lm_head", "embed_tokens", "wte", "wpe")) and hasattr(module, "weight"):
            module.to(torch.bfloat16)
