"""`ModelConfig`, and the adapter and quantization that it describes."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from sftkit_trl import ModelConfig, get_kbit_device_map, get_peft_config, get_quantization_config


def test_4_bits_and_8_bits_together_are_an_error() -> None:
    with pytest.raises(ValueError, match="8 bit and 4 bit"):
        ModelConfig(load_in_4bit=True, load_in_8bit=True)


def test_a_single_target_module_becomes_a_pattern() -> None:
    assert ModelConfig(lora_target_modules=["all-linear"]).lora_target_modules == "all-linear"
    assert ModelConfig(lora_target_modules=["q", "v"]).lora_target_modules == ["q", "v"]


def test_use_peft_configures_an_adapter() -> None:
    assert get_peft_config(ModelConfig()) is None
    options = {"lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "lora_target_modules": ["q", "v"], "use_rslora": True}
    made = get_peft_config(ModelConfig(use_peft=True, lora_modules_to_save=["lm_head"], **options))
    assert isinstance(made, LoraConfig)
    assert (made.r, made.lora_alpha, made.lora_dropout, made.use_rslora) == (4, 8, 0.1, True)
    assert (set(made.target_modules), made.modules_to_save) == ({"q", "v"}, ["lm_head"])
    assert (made.task_type, made.bias) == ("CAUSAL_LM", "none")


def test_the_arguments_configure_the_quantization() -> None:
    assert get_quantization_config(ModelConfig()) is None
    assert get_quantization_config(ModelConfig(load_in_8bit=True)).load_in_8bit
    asked = ModelConfig(load_in_4bit=True, torch_dtype="bfloat16", bnb_4bit_quant_type="fp4", use_bnb_nested_quant=True)
    made = get_quantization_config(asked)
    assert (made.bnb_4bit_compute_dtype, made.bnb_4bit_quant_type) == (torch.bfloat16, "fp4")
    assert made.bnb_4bit_use_double_quant


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests a machine without a GPU")
def test_without_a_gpu_there_is_no_device_map() -> None:
    assert get_kbit_device_map() is None
