"""The blocks of TRL's page on its SFT trainer, run with ``sftkit_trl``: flash attention, unsloth and Liger kernels.

Hub names lead to tiny local models and data (`conftest.py`). Code around a block completes it where it is a fragment;
a comment marks what current library versions need written differently.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types

import pytest
import torch

from sftkit.plugin.requirements import has_gpu

# Using Flash Attention and Flash Attention 2


def test_packed_rows_train_with_the_flash_kernel_alone(workplace, has_learnt):
    from datasets import load_dataset

    from sftkit_trl import SFTConfig, SFTTrainer

    # the kernel does not support padding: "you can only use that feature when setting packing=True"
    dataset = load_dataset("stanfordnlp/imdb", split="train")
    sft_config = SFTConfig(packing=True, dataset_text_field="text")
    trainer = SFTTrainer("facebook/opt-350m", train_dataset=dataset, args=sft_config)

    with torch.backends.cuda.sdp_kernel(enable_flash=True, enable_math=False, enable_mem_efficient=False):
        trainer.train()

    assert has_learnt(trainer, "facebook/opt-350m")


@pytest.mark.skipif(has_gpu(), reason="tests the error without a GPU")
@pytest.mark.parametrize("load_in_4bit", [True, False])
def test_flash_attention_2_reports_what_is_missing(workplace, load_in_4bit):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    model_id = "mistralai/Mistral-7B-v0.1"
    with pytest.raises(ImportError, match="FlashAttention2"):
        AutoModelForCausalLM.from_pretrained(
            model_id,
            # load_in_4bit=True before transformers 5
            quantization_config=BitsAndBytesConfig(load_in_4bit=True) if load_in_4bit else None,
            attn_implementation="flash_attention_2",
        )


# Accelerate fine-tuning 2x using unsloth


def unsloth_of_transformers():
    """A module with unsloth's `FastLanguageModel`, made of transformers and peft; it keeps the arguments."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    asked = {}

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(model_name, **options):
            asked.update(options)
            name = "mistralai/Mistral-7B-v0.1"
            return AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)

        @staticmethod
        def get_peft_model(model, r, target_modules, lora_alpha, lora_dropout, bias, **options):
            asked.update(options)
            config = LoraConfig(
                r=r,
                target_modules=target_modules,
                lora_alpha=lora_alpha,
                lora_dropout=lora_dropout,
                bias=bias,
                task_type="CAUSAL_LM",
            )
            return get_peft_model(model, config)

    module = types.ModuleType("unsloth")
    module.FastLanguageModel, module.asked = FastLanguageModel, asked
    return module


@pytest.mark.skipif(has_gpu(), reason="tests the error without a GPU")
def test_unsloth_without_a_gpu_is_an_error(workplace):
    from sftkit import ConfigError, Pipeline
    from sftkit_plugins.unsloth import Unsloth

    with pytest.raises((ImportError, NotImplementedError)):
        from unsloth import FastLanguageModel  # noqa: F401
    with pytest.raises(ConfigError, match="needs a GPU, and none is visible here"):
        Pipeline(model="unsloth/mistral-7b", data="stanfordnlp/imdb", plugins=[Unsloth(load_in_4bit=True)]).run()


def test_a_model_from_unsloth_is_trained_in_place(workplace, monkeypatch, saved_adapter):
    """Unsloth itself needs a GPU; the module that replaces it here returns models of the same classes."""
    monkeypatch.setitem(sys.modules, "unsloth", unsloth_of_transformers())
    from datasets import load_dataset
    from unsloth import FastLanguageModel

    from sftkit_trl import SFTConfig, SFTTrainer

    dataset = load_dataset("stanfordnlp/imdb", split="train")

    max_seq_length = 2048  # Supports automatic RoPE Scaling, so choose any number

    # Load model
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name="unsloth/mistral-7b",
        max_seq_length=max_seq_length,
        dtype=None,  # None for auto detection. Float16 for Tesla T4, V100, Bfloat16 for Ampere+
        load_in_4bit=True,  # Use 4bit quantization to reduce memory usage. Can be False
        # token = "hf_...", # use one if using gated models like meta-llama/Llama-2-7b-hf
    )

    # Do model patching and add fast LoRA weights
    model = FastLanguageModel.get_peft_model(
        model,
        r=16,
        target_modules=[
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ],
        lora_alpha=16,
        lora_dropout=0,  # Dropout = 0 is currently optimized
        bias="none",  # Bias = "none" is currently optimized
        use_gradient_checkpointing=True,
        random_state=3407,
    )

    args = SFTConfig(
        output_dir="./output",
        max_seq_length=max_seq_length,
        dataset_text_field="text",
    )

    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=dataset,
    )
    trainer.train()

    assert trainer.model is model
    assert tokenizer.get_vocab() == trainer.tokenizer.get_vocab()
    assert all(value.any() for name, value in saved_adapter(trainer).items() if "lora_B" in name)


# Liger-Kernel


@pytest.mark.skipif(has_gpu(), reason="tests the error without a GPU")
def test_liger_without_a_gpu_is_an_error(workplace):
    from datasets import load_dataset

    from sftkit_trl import SFTConfig, SFTTrainer

    dataset = load_dataset("stanfordnlp/imdb", split="train")
    config = SFTConfig(
        use_liger=True,
    )
    with pytest.raises(ValueError, match="liger needs a GPU"):
        SFTTrainer("mistralai/Mistral-7B-v0.1", train_dataset=dataset, args=config)


LIGER = """
import interpreter  # before anything imports triton
import json

interpreter.install()
from datasets import load_dataset
from sftkit_trl import SFTConfig, SFTTrainer

dataset = load_dataset("stanfordnlp/imdb", split="train")
losses = []
for use_liger in (False, True):
    config = SFTConfig(
        use_liger=use_liger,
        dataset_text_field="text",
        max_seq_length=32,
        per_device_train_batch_size=2,
        logging_steps=1,
        max_steps=2,
        use_cpu=True,
    )
    trainer = SFTTrainer("mistralai/Mistral-7B-v0.1", train_dataset=dataset, args=config)
    trainer.train()
    losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
print(json.dumps(losses))
"""


@pytest.mark.slow
def test_liger_does_not_change_the_losses(workplace, root):
    """The kernels run in a process of their own, under Triton's interpreter."""
    pytest.importorskip("liger_kernel")
    path = os.pathsep.join([str(root / "tests" / "plugins" / "liger"), os.environ.get("PYTHONPATH", "")])
    variables = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    command = [sys.executable, "-c", LIGER]
    done = subprocess.run(command, cwd=workplace, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]

    without, with_liger = json.loads(done.stdout.splitlines()[-1])
    assert len(without) == 2
    assert with_liger == pytest.approx(without, rel=1e-4)
