"""Whole scripts as people wrote them in 2023 and 2024, with small models and data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict, load_dataset
from peft import AutoPeftModelForCausalLM, LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftkit_trl import (
    ModelConfig,
    SFTConfig,
    SFTScriptArguments,
    SFTTrainer,
    TrlParser,
    get_kbit_device_map,
    get_peft_config,
    get_quantization_config,
)


def lines(path: Path, rows: Dataset) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_a_command_line_script_trains_a_packed_adapter(named, conversations, tmp_path) -> None:
    lines(tmp_path / "data" / "train.jsonl", conversations)
    lines(tmp_path / "data" / "test.jsonl", conversations.select(range(4)))
    line = f"--model_name_or_path {named} --dataset_name {tmp_path / 'data'} --output_dir {tmp_path / 'out'} --packing "
    line += "--learning_rate 2.0e-4 --per_device_train_batch_size 2 --gradient_accumulation_steps 2 --use_peft "
    line += "--gradient_checkpointing --logging_steps 1 --evaluation_strategy steps --eval_steps 2 --max_steps 2 "
    line += "--lora_r 4 --lora_target_modules all-linear --max_seq_length 32 --report_to none --use_cpu"

    script, args, model = TrlParser((SFTScriptArguments, SFTConfig, ModelConfig)).parse_args_and_config(line.split())
    quantization = get_quantization_config(model)
    args.model_init_kwargs = {
        "revision": model.model_revision,
        "trust_remote_code": model.trust_remote_code,
        "attn_implementation": model.attn_implementation,
        "torch_dtype": model.torch_dtype,
        "use_cache": not args.gradient_checkpointing,
        "device_map": get_kbit_device_map() if quantization is not None else None,
        "quantization_config": quantization,
    }
    tokenizer = AutoTokenizer.from_pretrained(model.model_name_or_path, use_fast=True)
    tokenizer.pad_token = tokenizer.eos_token
    raw = load_dataset(script.dataset_name)
    trainer = SFTTrainer(
        model=model.model_name_or_path,
        args=args,
        train_dataset=raw[script.dataset_train_split],
        eval_dataset=raw[script.dataset_test_split],
        tokenizer=tokenizer,
        peft_config=get_peft_config(model),
    )
    trainer.train()
    trainer.save_model(args.output_dir)
    assert trainer.state.global_step == 2
    assert any("eval_loss" in entry for entry in trainer.state.log_history)
    assert AutoPeftModelForCausalLM.from_pretrained(args.output_dir).peft_config["default"].r == 4


def test_a_script_packs_conversations_that_it_renders_itself(config, named, conversations, ids) -> None:
    tokenizer = AutoTokenizer.from_pretrained(named)
    raw = DatasetDict({"train": conversations, "test": conversations.select(range(6))})
    raw = raw.map(
        lambda row: {"text": tokenizer.apply_chat_template(row["messages"], tokenize=False)},
        remove_columns=["messages"],
    )
    args = config(
        packing=True,
        bf16=True,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        evaluation_strategy="epoch",
        num_train_epochs=1,
        max_steps=-1,
        warmup_ratio=0.1,
        dataset_text_field="text",
        dataset_kwargs={"add_special_tokens": False, "append_concat_token": False},
        model_init_kwargs={"torch_dtype": "bfloat16", "use_cache": False},
    )
    trainer = SFTTrainer(named, args, train_dataset=raw["train"], eval_dataset=raw["test"], tokenizer=tokenizer)
    stream = [
        token for text in raw["train"]["text"] for token in tokenizer(text, add_special_tokens=False)["input_ids"]
    ]
    assert [token for row in ids(trainer.train_dataset) for token in row] == stream[: len(stream) // 32 * 32]
    metrics = trainer.train().metrics
    assert metrics["train_loss"] > 0
    assert trainer.evaluate()["eval_loss"] > 0
    assert trainer.model.dtype == torch.bfloat16


def test_a_script_trains_saves_and_merges_an_adapter(config, named, rows, tmp_path) -> None:
    model = AutoModelForCausalLM.from_pretrained(named)
    model.config.use_cache = False
    tokenizer = AutoTokenizer.from_pretrained(named, trust_remote_code=True)
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "right"
    lora = LoraConfig(r=4, lora_alpha=16, lora_dropout=0.1, bias="none", task_type="CAUSAL_LM")
    with pytest.warns(FutureWarning):
        trainer = SFTTrainer(
            model=model,
            train_dataset=rows,
            peft_config=lora,
            dataset_text_field="text",
            max_seq_length=64,
            tokenizer=tokenizer,
            args=config(optim="adamw_torch", group_by_length=True, warmup_ratio=0.03, lr_scheduler_type="constant"),
            packing=False,
        )
    trainer.train()
    trainer.model.save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[5, 6, 7]])
    expected = trainer.model.eval()(ids).logits
    merged = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").merge_and_unload()
    torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_script_renders_rows_with_its_own_prompt(config, named, tmp_path) -> None:
    (tmp_path / "data.json").write_text(
        json.dumps([{"instruction": f"Add {n} and 1.", "input": "", "output": str(n + 1)} for n in range(8)])
    )
    data = load_dataset("json", data_files=str(tmp_path / "data.json"), split="train")
    tokenizer = AutoTokenizer.from_pretrained(named)
    prompt = "### Instruction:\n{}\n\n### Response:\n{}"

    def formatted(examples: Any) -> dict[str, Any]:
        pairs = zip(examples["instruction"], examples["output"], strict=True)
        return {"text": [prompt.format(*pair) + tokenizer.eos_token for pair in pairs]}

    args = config(dataset_text_field="text", max_seq_length=128, gradient_accumulation_steps=2)
    trainer = SFTTrainer(named, args, train_dataset=data.map(formatted, batched=True), tokenizer=tokenizer)
    assert all(row["input_ids"][-1] == tokenizer.eos_token_id for row in trainer.train_dataset)
    batch = next(iter(trainer.get_train_dataloader()))
    assert ((batch["labels"] == tokenizer.eos_token_id).sum(1) == 1).all()
    assert trainer.train().metrics["train_samples_per_second"] > 0


@pytest.mark.slow
def test_a_script_splits_and_packs_a_stream(config, named, question, rows, tmp_path) -> None:
    lines(tmp_path / "data" / "rows.jsonl", Dataset.from_list(rows.to_list() * 6))
    data = load_dataset("json", data_files=str(tmp_path / "data" / "*.jsonl"), split="train", streaming=True)
    args = config(packing=True, max_steps=8, eval_strategy="steps", eval_steps=4, eval_packing=False)
    train = data.skip(5).shuffle(buffer_size=10, seed=0)
    trainer = SFTTrainer(named, args, train_dataset=train, eval_dataset=data.take(5), formatting_func=question)
    assert trainer.train().global_step == 8
    assert len([entry for entry in trainer.state.log_history if "eval_loss" in entry]) == 2
