"""The modules from which scripts of 2024 import, under the names of TRL's."""

from __future__ import annotations

import importlib

import pytest
import torch
from transformers import TrainerCallback

import sftkit_trl
from sftkit.testing import tiny_model, tiny_tokenizer
from sftkit_trl.commands.cli_utils import init_zero_verbose
from sftkit_trl.env_utils import strtobool
from sftkit_trl.trainer.utils import SIMPLE_CHAT_TEMPLATE, SIMPLE_SFT_CHAT_TEMPLATE, peft_module_casting_to_bf16

MODULES = {
    "commands": "TrlParser init_zero_verbose",
    "commands.cli_utils": "SFTScriptArguments ScriptArguments SftScriptArguments TrlParser init_zero_verbose",
    "core": "set_seed",
    "extras.dataset_formatting": "ConstantLengthDataset conversations_formatting_function "
    "get_formatting_func_from_dataset instructions_formatting_function",
    "import_utils": "is_npu_available is_peft_available is_xpu_available",
    "models": "setup_chat_format",
    "models.utils": "ChatMlSpecialTokens setup_chat_format",
    "trainer": "ConstantLengthDataset DataCollatorForCompletionOnlyLM ModelConfig RichProgressCallback SFTConfig "
    "SFTTrainer",
    "trainer.callbacks": "RichProgressCallback",
    "trainer.model_config": "ModelConfig",
    "trainer.sft_config": "SFTConfig",
    "trainer.sft_trainer": "SFTTrainer",
    "trainer.utils": "ConstantLengthDataset DataCollatorForCompletionOnlyLM RichProgressCallback get_kbit_device_map "
    "get_peft_config get_quantization_config",
    "utils": "ScriptArguments",
}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_the_objects_of_the_package(module) -> None:
    imported = importlib.import_module(f"sftkit_trl.{module}")
    for name in MODULES[module].split():
        assert getattr(imported, name) is getattr(sftkit_trl, name)


def test_every_name_of_the_package_can_be_imported() -> None:
    assert all(getattr(sftkit_trl, name) is not None for name in sftkit_trl.__all__)
    assert issubclass(sftkit_trl.RichProgressCallback, TrainerCallback)


def test_set_seed_repeats_random_numbers() -> None:
    drawn = []
    for _ in range(2):
        sftkit_trl.set_seed(3)
        drawn.append(torch.rand(2))
    assert torch.equal(*drawn)


def test_devices_and_packages_are_found() -> None:
    assert sftkit_trl.is_peft_available()
    assert sftkit_trl.is_xpu_available() == torch.xpu.is_available()
    assert (strtobool("1"), strtobool("no")) == (1, 0)


def test_simple_templates_render_a_conversation() -> None:
    tokenizer = tiny_tokenizer()
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    sft = tokenizer.apply_chat_template(turns, chat_template=SIMPLE_SFT_CHAT_TEMPLATE, tokenize=False)
    assert sft == f" a b{tokenizer.eos_token}"
    options = {"tokenize": False, "add_generation_prompt": True}
    chat = tokenizer.apply_chat_template(turns[:1], chat_template=SIMPLE_CHAT_TEMPLATE, **options)
    assert chat == "User: a\n\nAssistant:"


def test_norms_stay_in_float32_beside_a_bfloat16_head() -> None:
    model = tiny_model()
    peft_module_casting_to_bf16(model)
    types = {name: parameter.dtype for name, parameter in model.named_parameters()}
    assert types["model.embed_tokens.weight"] == types["lm_head.weight"] == torch.bfloat16
    assert types["model.norm.weight"] == types["model.layers.0.self_attn.q_proj.weight"] == torch.float32


def test_init_zero_verbose_shows_no_warnings(recwarn) -> None:
    init_zero_verbose()
    assert not recwarn.list
