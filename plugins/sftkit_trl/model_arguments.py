"""`ModelConfig`: which model a script loads, how it is quantized, and which adapter it gets."""

# Not `from __future__ import annotations`: HfArgumentParser reads the fields' types.

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from accelerate import PartialState
from transformers import BitsAndBytesConfig

from sftkit_plugins.peft import PEFT


@dataclass
class ModelConfig:
    """Arguments about the model, for `HfArgumentParser`."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Directory or hub name of the model."})
    model_revision: str = field(default="main", metadata={"help": "Branch, tag or commit."})
    torch_dtype: str | None = field(
        default=None,
        metadata={"help": "Data type of the weights.", "choices": ["auto", "bfloat16", "float16", "float32"]},
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})
    attn_implementation: str | None = field(default=None, metadata={"help": "For example sdpa."})
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapter."})
    lora_alpha: int = field(default=32, metadata={"help": "The adapter is scaled by alpha/r."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout on the adapter's inputs."})
    lora_target_modules: list[str] | None = field(default=None, metadata={"help": "Names of the adapted layers."})
    lora_modules_to_save: list[str] | None = field(default=None, metadata={"help": "Layers that are trained in full."})
    lora_task_type: str = field(default="CAUSAL_LM", metadata={"help": "SEQ_CLS for reward models."})
    use_rslora: bool = field(default=False, metadata={"help": "Scale by alpha/sqrt(r)."})
    load_in_8bit: bool = field(default=False, metadata={"help": "Load the base model in 8 bits."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Load the base model in 4 bits."})
    bnb_4bit_quant_type: str | None = field(default="nf4", metadata={"help": "fp4 or nf4."})
    use_bnb_nested_quant: bool = field(default=False, metadata={"help": "Quantize the scales too."})

    def __post_init__(self) -> None:
        """Check the values; a single target becomes a pattern, such as all-linear."""
        if self.load_in_8bit and self.load_in_4bit:
            raise ValueError("You can't use 8 bit and 4 bit precision at the same time")
        if isinstance(self.lora_target_modules, list) and len(self.lora_target_modules) == 1:
            self.lora_target_modules = self.lora_target_modules[0]  # type: ignore[assignment]


def get_peft_config(model_config: ModelConfig) -> Any:
    """The LoRA configuration that the arguments ask for, or None."""
    if not model_config.use_peft:
        return None
    if find_spec("peft") is None:
        raise ValueError(f'use_peft needs the package peft. Install it: pip install "{PEFT.requires[0]}"')
    from peft import LoraConfig

    return LoraConfig(
        task_type=model_config.lora_task_type,
        r=model_config.lora_r,
        target_modules=model_config.lora_target_modules,
        lora_alpha=model_config.lora_alpha,
        lora_dropout=model_config.lora_dropout,
        bias="none",
        use_rslora=model_config.use_rslora,
        modules_to_save=model_config.lora_modules_to_save,
    )


def get_quantization_config(model_config: ModelConfig) -> BitsAndBytesConfig | None:
    """The bitsandbytes configuration that the arguments ask for, or None."""
    if model_config.load_in_4bit:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_compute_dtype=model_config.torch_dtype,  # as for the rest of the model
            bnb_4bit_quant_type=model_config.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=model_config.use_bnb_nested_quant,
            bnb_4bit_quant_storage=model_config.torch_dtype,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if model_config.load_in_8bit else None


def get_kbit_device_map() -> dict[str, int] | None:
    """A device map with the whole model on this process's GPU; None without a GPU."""
    return {"": PartialState().local_process_index} if torch.cuda.is_available() else None
