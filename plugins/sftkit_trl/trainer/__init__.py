"""``trl.trainer`` of 2024, as far as supervised fine-tuning uses it."""

from sftkit_plugins.completion_only.collator import DataCollatorForCompletionOnlyLM
from sftkit_plugins.packing.stream import ConstantLengthDataset
from sftkit_trl.arguments import SFTConfig
from sftkit_trl.callbacks import RichProgressCallback
from sftkit_trl.model_arguments import ModelConfig
from sftkit_trl.trainer.sft_trainer import SFTTrainer
from sftkit_trl.trainer.utils import peft_module_casting_to_bf16

__all__ = [
    "ConstantLengthDataset",
    "DataCollatorForCompletionOnlyLM",
    "ModelConfig",
    "RichProgressCallback",
    "SFTConfig",
    "SFTTrainer",
    "peft_module_casting_to_bf16",
]
