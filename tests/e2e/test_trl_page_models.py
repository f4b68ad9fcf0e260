"""The blocks of TRL's page on its SFT trainer, run with ``sftkit_trl``: models, adapters and quantized bases.

Hub names lead to tiny local models and data (`conftest.py`). Code around a block completes it where it is a fragment;
a comment marks what current library versions need written differently.
"""

from __future__ import annotations

import json

import pytest
import torch

# Control over the pretrained model


def test_model_init_kwargs_are_passed_to_from_pretrained(workplace, has_learnt):
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM

    from sftkit_trl import SFTConfig, SFTTrainer

    dataset = load_dataset("stanfordnlp/imdb", split="train")

    model = AutoModelForCausalLM.from_pretrained("facebook/opt-350m", torch_dtype=torch.bfloat16)

    sft_config = SFTConfig(
        model_init_kwargs={
            "torch_dtype": "bfloat16",
        },
        output_dir="tmp",
    )
    trainer = SFTTrainer(
        "facebook/opt-350m",
        train_dataset=dataset,
        args=sft_config,
    )

    trainer.train()

    assert trainer.model.dtype == model.dtype == torch.bfloat16
    assert has_learnt(trainer, "facebook/opt-350m")
    with pytest.raises(ValueError, match="already instantiated"):
        SFTTrainer(model, train_dataset=dataset, args=sft_config)


# Training adapters


def test_an_adapter_is_trained_saved_and_continued(workplace, saved_adapter):
    from datasets import load_dataset
    from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel
    from transformers import AutoModelForCausalLM

    from sftkit_trl import SFTConfig, SFTTrainer

    dataset = load_dataset("stanfordnlp/imdb", split="train")

    peft_config = LoraConfig(
        r=16,
        lora_alpha=32,
        lora_dropout=0.05,
        bias="none",
        task_type="CAUSAL_LM",
    )

    trainer = SFTTrainer(
        "EleutherAI/gpt-neo-125m",
        train_dataset=dataset,
        args=SFTConfig(dataset_text_field="text", per_device_train_batch_size=4, max_seq_length=512, output_dir="tmp"),
        peft_config=peft_config,
    )

    trainer.train()

    saved = saved_adapter(trainer)
    assert saved
    assert all(".q_proj." in name or ".v_proj." in name for name in saved)  # peft's default for GPT-Neo
    assert all(value.any() for name, value in saved.items() if "lora_B" in name)  # initialized to zero
    base = AutoModelForCausalLM.from_pretrained("EleutherAI/gpt-neo-125m").state_dict()
    held = trainer.model.get_base_model().state_dict()
    assert all(value.equal(held[name]) for name, value in base.items() if name in held)
    assert AutoPeftModelForCausalLM.from_pretrained("tmp")

    # training continues with the saved adapter
    model = AutoModelForCausalLM.from_pretrained("EleutherAI/gpt-neo-125m")
    model = PeftModel.from_pretrained(model, "tmp", is_trainable=True)
    args = SFTConfig(dataset_text_field="text", per_device_train_batch_size=4, max_seq_length=512, output_dir="on")
    trainer = SFTTrainer(model, train_dataset=dataset, args=args)
    trainer.train()

    further = saved_adapter(trainer)
    assert further.keys() == saved.keys()
    assert all(not value.equal(further[name]) for name, value in saved.items() if "lora_B" in name)


# Training adapters with base 8 bit models


def test_an_adapter_is_trained_on_an_8_bit_base(workplace, saved_adapter):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from sftkit_trl import SFTConfig, SFTTrainer

    dataset = load_dataset("stanfordnlp/imdb", split="train")
    peft_config = LoraConfig(
        r=16,
        lora_alpha=32,
        lora_dropout=0.05,
        bias="none",
        task_type="CAUSAL_LM",
    )

    model = AutoModelForCausalLM.from_pretrained(
        "EleutherAI/gpt-neo-125m",
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),  # load_in_8bit=True before transformers 5
        device_map="auto",
    )

    trainer = SFTTrainer(
        model,
        train_dataset=dataset,
        args=SFTConfig(),
        peft_config=peft_config,
    )

    trainer.train()

    assert any(isinstance(module, bitsandbytes.nn.Linear8bitLt) for module in trainer.model.modules())
    assert all(value.any() for name, value in saved_adapter(trainer).items() if "lora_B" in name)


# Using model creation utility


def test_model_config_describes_the_model(workplace, has_learnt):
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM

    from sftkit_trl import (
        ModelConfig,
        SFTConfig,
        SFTTrainer,
        get_kbit_device_map,
        get_peft_config,
        get_quantization_config,
    )

    training_args = SFTConfig(dataset_text_field="text", output_dir="tmp")
    model_config = ModelConfig(
        model_name_or_path="facebook/opt-350m",  # the page has no comma here
        attn_implementation=None,  # or "flash_attention_2"
    )
    torch_dtype = (
        model_config.torch_dtype
        if model_config.torch_dtype in ["auto", None]
        else getattr(torch, model_config.torch_dtype)
    )
    quantization_config = get_quantization_config(model_config)
    model_kwargs = dict(  # noqa: C408
        revision=model_config.model_revision,
        trust_remote_code=model_config.trust_remote_code,
        attn_implementation=model_config.attn_implementation,
        torch_dtype=torch_dtype,
        use_cache=False if training_args.gradient_checkpointing else True,  # noqa: SIM211
        device_map=get_kbit_device_map() if quantization_config is not None else None,
        quantization_config=quantization_config,
    )
    model = AutoModelForCausalLM.from_pretrained(model_config.model_name_or_path, **model_kwargs)
    trainer = SFTTrainer(
        args=training_args,
        train_dataset=load_dataset("stanfordnlp/imdb", split="train"),
        model=model_config.model_name_or_path,
        peft_config=get_peft_config(model_config),
    )
    trainer.train()

    assert quantization_config is None
    assert has_learnt(trainer, "facebook/opt-350m")
    assert model.config._name_or_path == "facebook/opt-350m"


def test_model_config_describes_an_8_bit_model_with_an_adapter(workplace, saved_adapter):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM

    from sftkit_trl import (
        ModelConfig,
        SFTConfig,
        SFTTrainer,
        get_kbit_device_map,
        get_peft_config,
        get_quantization_config,
    )

    model_config = ModelConfig(model_name_or_path="facebook/opt-350m", load_in_8bit=True, use_peft=True, lora_r=4)
    model = AutoModelForCausalLM.from_pretrained(
        model_config.model_name_or_path,
        device_map=get_kbit_device_map(),
        quantization_config=get_quantization_config(model_config),
    )
    trainer = SFTTrainer(
        model,
        args=SFTConfig(dataset_text_field="text", output_dir="tmp"),
        train_dataset=load_dataset("stanfordnlp/imdb", split="train"),
        peft_config=get_peft_config(model_config),
    )
    trainer.train()

    assert any(isinstance(module, bitsandbytes.nn.Linear8bitLt) for module in trainer.model.modules())
    assert {min(value.shape) for value in saved_adapter(trainer).values()} == {4}


def test_a_script_reads_its_arguments_from_file_and_command_line(workplace, saved_adapter):
    """As examples/scripts/sft.py, to which the page links: three groups of arguments."""
    from datasets import load_dataset

    from sftkit_trl import ModelConfig, SFTConfig, SFTScriptArguments, SFTTrainer, TrlParser, get_peft_config

    (workplace / "data").mkdir()
    rows = [json.dumps({"text": f"Film {number} was long."}) for number in range(4)]
    (workplace / "data" / "test.jsonl").write_text("\n".join(rows), encoding="utf-8")
    (workplace / "data" / "train.jsonl").symlink_to(workplace / "stanfordnlp" / "imdb" / "train.jsonl")
    (workplace / "sft.yaml").write_text("model_name_or_path: EleutherAI/gpt-neo-125m\nmax_seq_length: 64\nlora_r: 8\n")
    command = "--config sft.yaml --dataset_name data --dataset_text_field text --output_dir tmp --use_peft --lora_r 4"
    parser = TrlParser((SFTScriptArguments, SFTConfig, ModelConfig))
    args, training_args, model_config = parser.parse_args_and_config([*command.split(), "--eval_strategy", "epoch"])

    raw_datasets = load_dataset(args.dataset_name)
    trainer = SFTTrainer(
        model=model_config.model_name_or_path,
        args=training_args,
        train_dataset=raw_datasets[args.dataset_train_split],
        eval_dataset=raw_datasets[args.dataset_test_split],
        peft_config=get_peft_config(model_config),
    )
    trainer.train()

    assert [entry["epoch"] for entry in trainer.state.log_history if "eval_loss" in entry] == [1, 2, 3]
    assert max(len(row["input_ids"]) for row in trainer.train_dataset) == 64
    assert {min(value.shape) for value in saved_adapter(trainer).values()} == {4}


def test_an_8_bit_peft_model_made_by_the_script_is_trained(workplace, saved_adapter):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from datasets import load_dataset
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from sftkit_trl import SFTConfig, SFTTrainer

    quantized = BitsAndBytesConfig(load_in_8bit=True)
    model = AutoModelForCausalLM.from_pretrained("EleutherAI/gpt-neo-125m", quantization_config=quantized)
    model = prepare_model_for_kbit_training(
        model, use_gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    model = get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM"))
    dataset = load_dataset("stanfordnlp/imdb", split="train")
    trainer = SFTTrainer(model, train_dataset=dataset, args=SFTConfig(dataset_text_field="text"))
    trainer.train()

    assert any(isinstance(module, bitsandbytes.nn.Linear8bitLt) for module in trainer.model.modules())
    assert all(value.any() for name, value in saved_adapter(trainer).items() if "lora_B" in name)


def test_load_in_8bit_quantizes_a_model_passed_by_name(workplace, saved_adapter):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from datasets import load_dataset
    from peft import LoraConfig

    from sftkit_trl import SFTConfig, SFTTrainer

    trainer = SFTTrainer(
        "EleutherAI/gpt-neo-125m",
        train_dataset=load_dataset("stanfordnlp/imdb", split="train"),
        args=SFTConfig(dataset_text_field="text", model_init_kwargs={"load_in_8bit": True}),
        peft_config=LoraConfig(r=4, task_type="CAUSAL_LM"),
    )
    trainer.train()

    assert any(isinstance(module, bitsandbytes.nn.Linear8bitLt) for module in trainer.model.modules())
    assert all(value.any() for name, value in saved_adapter(trainer).items() if "lora_B" in name)
