"""Scripts of 2023 and 2024 that read their arguments from a command line or a file, rewritten."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    HfArgumentParser,
    Seq2SeqTrainingArguments,
)

import sftkit_trl as trl
from sftkit_trl import DataCollatorForCompletionOnlyLM, SFTTrainer, TrainingArguments
from sftkit_trl.commands.cli_utils import SFTScriptArguments, SftScriptArguments, TrlParser
from sftkit_trl.env_utils import strtobool

OFFLINE = "--report_to none --use_cpu --per_device_train_batch_size 2 --max_steps 2 --logging_steps 1"


@dataclass
class DataArguments:
    """Arguments of a script of TRL 0.7."""

    model_name: str | None = field(default=None, metadata={"help": "the model name"})
    dataset_text_field: str | None = field(default="text")
    max_seq_length: int | None = field(default=64)
    packing: bool | None = field(default=False)


def test_training_arguments_beside_a_scripts_own(named, rows, tmp_path, losses) -> None:
    line = f"{OFFLINE} --model_name {named} --output_dir {tmp_path} --evaluation_strategy no --warmup_ratio 0.03 "
    line += "--lr_scheduler_type cosine --save_steps 1000 --overwrite_output_dir --neftune_noise_alpha 5"
    own, args = HfArgumentParser((DataArguments, TrainingArguments)).parse_args_into_dataclasses(line.split())
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(own.model_name),
        args=args,
        max_seq_length=own.max_seq_length,
        train_dataset=rows,
        dataset_text_field=own.dataset_text_field,
        neftune_noise_alpha=args.neftune_noise_alpha,
    )
    trainer.train()
    trainer.save_model(args.output_dir)
    assert len(losses(trainer)) == 2
    assert (tmp_path / "model.safetensors").exists()


@dataclass
class SftArguments:
    """Arguments of a script that has no TRL configuration; the first ones are required."""

    model_name_or_path: str
    data_files: list[str]
    eval_data_files: list[str] | None = None
    max_seq_length: int = 2048
    use_peft: bool = False


def test_gpt2_learns_answers_in_japanese(tmp_path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from sftkit.testing import tiny_tokenizer

    GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=2)).save_pretrained(tmp_path / "gpt2")
    tiny_tokenizer().save_pretrained(tmp_path / "gpt2")
    texts = [f"### 指示：\n{n}は？\n\n### 応答：\n{n}です。" for n in range(6)]
    Dataset.from_dict({"text": texts, "source": ["a"] * 6}).to_json(tmp_path / "ja.jsonl", force_ascii=False)
    line = f"{OFFLINE} --model_name_or_path {tmp_path / 'gpt2'} --data_files {tmp_path / 'ja.jsonl'} --use_peft true "
    line += f"--eval_data_files {tmp_path / 'ja.jsonl'} --output_dir {tmp_path / 'out'} --group_by_length --bf16 "
    line += f"--evaluation_strategy steps --eval_steps 2 --warmup_ratio 0.1 --logging_dir {tmp_path / 'logs'}"
    args, own = HfArgumentParser((TrainingArguments, SftArguments)).parse_args_into_dataclasses(line.split())
    tokenizer = AutoTokenizer.from_pretrained(own.model_name_or_path)
    train = load_dataset("json", data_files=own.data_files)["train"].select_columns("text")
    args.do_eval = True
    trainer = SFTTrainer(
        own.model_name_or_path,
        args=args,
        tokenizer=tokenizer,
        train_dataset=train,
        eval_dataset=train,
        formatting_func=lambda example: [text.replace("### 応答：", "### 回答：") for text in example["text"]],
        data_collator=DataCollatorForCompletionOnlyLM("回答：", tokenizer=tokenizer),
        peft_config=LoraConfig(
            r=4, target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True, task_type="CAUSAL_LM"
        ),
        max_seq_length=own.max_seq_length,
    )
    trainer.train()
    labels = next(iter(trainer.get_train_dataloader()))["labels"]
    assert tokenizer.decode(labels[0][labels[0] != -100]).strip().endswith("です。")
    assert any("eval_loss" in entry for entry in trainer.state.log_history)


@dataclass
class MoreArguments(SftScriptArguments):
    """Arguments of TRL 0.8's script and one more."""

    max_train_samples: int | None = None


@pytest.mark.parametrize("rich", ["1", "0"])
def test_the_command_line_of_trl_08(named, rows, tmp_path, monkeypatch, rich) -> None:
    monkeypatch.setenv("TRL_USE_RICH", rich)
    use_rich = strtobool("0" if rich == "0" else "1")
    rows.to_json(tmp_path / "data.jsonl")
    line = (
        f"{OFFLINE} --output_dir {tmp_path}/{{model_name_or_path}} --model_name_or_path {named} --dataset_text_field "
    )
    line += (
        f"text --max_seq_length 96 --max_train_samples 6 --dataset_name {tmp_path}/data.jsonl --use_peft --lora_r 4 "
    )
    line += "--dataset_train_name train --overwrite_output_dir --gradient_checkpointing"
    parser = TrlParser((MoreArguments, TrainingArguments, trl.ModelConfig))
    args, training_args, model_config = parser.parse_args_and_config(line.split())
    training_args.disable_tqdm = bool(use_rich)
    names = {**asdict(args), **asdict(training_args), **asdict(model_config), "model_name_or_path": "tiny"}
    training_args.output_dir = training_args.output_dir.format(**names)
    if training_args.gradient_checkpointing and training_args.gradient_checkpointing_kwargs is None:
        training_args.gradient_checkpointing_kwargs = {"use_reentrant": False}
    model = AutoModelForCausalLM.from_pretrained(
        model_config.model_name_or_path,
        revision=model_config.model_revision,
        torch_dtype=model_config.torch_dtype,
        use_cache=not training_args.gradient_checkpointing,
        quantization_config=trl.get_quantization_config(model_config),
    )
    raw = load_dataset("json", data_files={args.dataset_train_name: args.dataset_name})
    with nullcontext():
        trainer = SFTTrainer(
            model=model,
            args=training_args,
            train_dataset=raw[args.dataset_train_name].select(range(args.max_train_samples)),
            dataset_text_field=args.dataset_text_field,
            max_seq_length=args.max_seq_length,
            tokenizer=AutoTokenizer.from_pretrained(model_config.model_name_or_path, use_fast=True, add_eos_token=True),
            packing=args.packing,
            peft_config=trl.get_peft_config(model_config),
            callbacks=[trl.RichProgressCallback] if use_rich else None,
        )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    assert (tmp_path / "tiny" / "adapter_model.safetensors").exists()
    assert len(trainer.train_dataset) == 6


@dataclass
class FsdpArguments:
    """Arguments of the script that trained Llama 3 with FSDP and QLoRA."""

    model_id: str
    dataset_path: str = field(default=None, metadata={"help": "Path to the dataset"})
    max_seq_length: int = field(default=512, metadata={"help": "The maximum sequence length"})


def test_the_file_of_an_fsdp_script(named, conversations, tmp_path) -> None:
    file = f"""
model_id: {named}
dataset_path: {tmp_path}
max_seq_length: 48
output_dir: {tmp_path / "out"}
report_to: none
use_cpu: true
learning_rate: 2e-4
lr_scheduler_type: constant
max_steps: 2
per_device_train_batch_size: 1
per_device_eval_batch_size: 1
gradient_accumulation_steps: 2
optim: adamw_torch
logging_steps: 10
evaluation_strategy: epoch
max_grad_norm: 0.3
warmup_ratio: 0.03
bf16: true
tf32: false
gradient_checkpointing: true
fsdp: ""
"""
    (tmp_path / "fsdp.yaml").write_text(file)
    conversations.to_json(tmp_path / "train.json")
    parser = TrlParser((FsdpArguments, TrainingArguments))
    own, args = parser.parse_args_and_config(["--config", str(tmp_path / "fsdp.yaml")])
    args.gradient_checkpointing_kwargs = {"use_reentrant": True}
    tokenizer = AutoTokenizer.from_pretrained(own.model_id, use_fast=True)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = "{% for m in messages %}\n\n{{ m.role }}: {{ m.content + eos_token }}{% endfor %}"
    data = load_dataset("json", data_files=str(tmp_path / "train.json"), split="train")

    def rendered(row: Any) -> Any:
        return {"text": tokenizer.apply_chat_template(row["messages"], tokenize=False)}

    data = data.map(rendered, remove_columns=["messages"])
    with args.main_process_first(desc="log samples"):
        assert data[0]["text"].count(tokenizer.eos_token) == 3
    model = AutoModelForCausalLM.from_pretrained(own.model_id, attn_implementation="sdpa", use_cache=False)
    model.gradient_checkpointing_enable()
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=data,
        dataset_text_field="text",
        eval_dataset=data.select(range(4)),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
        max_seq_length=own.max_seq_length,
        tokenizer=tokenizer,
        packing=True,
        dataset_kwargs={"add_special_tokens": False, "append_concat_token": False},
    )
    assert trainer.accelerator.is_main_process
    trainer.model.print_trainable_parameters()
    trainer.train(resume_from_checkpoint=None)
    assert not trainer.is_fsdp_enabled
    trainer.save_model()
    assert (tmp_path / "out" / "adapter_config.json").exists()
    assert {len(row["input_ids"]) for row in trainer.train_dataset} == {48}


def test_an_sft_config_of_shared_arguments(named, rows, tmp_path, losses) -> None:
    line = f"{OFFLINE} --output_dir {tmp_path} --model_name {named} --packing true --max_seq_length 48 --bf16 true "
    line += "--evaluation_strategy steps --eval_steps 2 --gradient_checkpointing true --warmup_ratio 0.05 --extra 1"
    parser = HfArgumentParser((DataArguments, TrainingArguments))
    own, args, rest = parser.parse_args_into_dataclasses(line.split(), return_remaining_strings=True)
    assert not (args.group_by_length and own.packing)
    shared = {each.name: getattr(args, each.name) for each in fields(args) if each.init}
    config = trl.SFTConfig(
        **shared,
        packing=own.packing,
        max_seq_length=own.max_seq_length,
        dataset_text_field=own.dataset_text_field,
    )
    tokenizer = AutoTokenizer.from_pretrained(own.model_name, truncation_side="right", padding_side="right")
    model = AutoModelForCausalLM.from_pretrained(own.model_name, use_cache=False)
    trainer = SFTTrainer(model=model, args=config, train_dataset=rows, eval_dataset=rows, tokenizer=tokenizer)
    trainer.train()
    assert rest == ["--extra", "1"]
    assert len(losses(trainer)) == 2


@dataclass
class OwnConfig(trl.SFTConfig):
    """Other defaults for the trainer's arguments."""

    output_dir: str = field(default="out")
    report_to: str = field(default="none")
    metric_for_best_model: str = field(default="loss")
    greater_is_better: bool = field(default=False)
    load_best_model_at_end: bool = field(default=True)
    dataset_text_field: str = field(default="text")
    remove_unused_columns: bool = field(default=False)
    per_device_eval_batch_size: int = field(default=4)
    eval_strategy: str = field(default="epoch")
    save_strategy: str = field(default="epoch")
    eval_on_start: bool = field(default=True)
    lr_scheduler_type: str = field(default="cosine_with_restarts")
    include_inputs_for_metrics: bool = field(default=False)
    max_seq_length: int = field(default=64)
    num_train_epochs: int = field(default=1)
    use_cpu: bool = field(default=True)


@dataclass
class OwnModel(trl.ModelConfig):
    """Other defaults for the arguments of the model."""

    torch_dtype: str = field(default="bfloat16")
    use_peft: bool = field(default=True)
    lora_target_modules: list[str] = field(default_factory=lambda: ["q_proj", "v_proj"])


def test_subclasses_of_the_argument_classes(named, rows, tmp_path) -> None:
    parser = TrlParser((SFTScriptArguments, OwnConfig, OwnModel))
    line = ["--output_dir", str(tmp_path), "--model_name_or_path", named]
    script, args, model = parser.parse_args_and_config(line)
    args.model_init_kwargs = {"torch_dtype": model.torch_dtype}
    trainer = SFTTrainer(
        model=model.model_name_or_path,
        args=args,
        train_dataset=rows,
        eval_dataset=rows,
        peft_config=trl.get_peft_config(model),
    )
    trainer.train()
    evaluated = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert script.dataset_train_split == "train"
    assert len(evaluated) == 2
    assert trainer.state.best_metric == evaluated[1]


def test_seq2seq_arguments_and_texts_cut_on_the_left(named, rows, tmp_path) -> None:
    args = Seq2SeqTrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        report_to="none",
        use_cpu=True,
        generation_config=GenerationConfig(min_length=48, top_k=50, do_sample=True),
    )
    tokenizer = AutoTokenizer.from_pretrained(named)
    tokenizer.pad_token, tokenizer.padding_side, tokenizer.truncation_side = tokenizer.eos_token, "left", "left"
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(named, quantization_config=None, device_map=None, torch_dtype=None),
        args=args,
        max_seq_length=12,
        train_dataset=rows.filter(lambda row: "o" in row["text"]),
        dataset_text_field="text",
        peft_config=None,
        tokenizer=tokenizer,
    )
    assert trainer.train().global_step == 2
    assert all(tokenizer.decode(row["input_ids"]).endswith(".") for row in trainer.train_dataset)


@dataclass
class Nested:
    """Arguments that hold those of the training."""

    model_name: str
    streaming: bool = False
    training_args: TrainingArguments = field(
        default_factory=lambda: TrainingArguments(
            output_dir="output", max_steps=2, use_cpu=True, report_to="none", remove_unused_columns=True
        )
    )


@pytest.mark.parametrize("streaming", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_formatting_function_for_data_in_memory_or_streamed(named, rows, tmp_path, monkeypatch, streaming) -> None:
    monkeypatch.chdir(tmp_path)
    rows.to_json("data.jsonl")
    own = Nested(named, streaming)
    data = load_dataset("json", data_files="data.jsonl", split="train", streaming=own.streaming)
    held_out, train = (data.take(2), data.skip(2).shuffle(seed=1)) if streaming else (data.select([0, 1]), data)
    tokenizer = AutoTokenizer.from_pretrained(named)
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.eos_token, "right"

    def prompts(example: Any) -> list[str]:
        return [f"Instruction:\n{one}\n\nAnswer:\n{example['answer'][i]}" for i, one in enumerate(example["question"])]

    model = AutoModelForCausalLM.from_pretrained(own.model_name)
    model.config.use_cache = False
    trainer = SFTTrainer(
        args=own.training_args,
        model=model,
        tokenizer=tokenizer,
        train_dataset=train,
        eval_dataset=held_out,
        packing=False,
        formatting_func=prompts,
        max_seq_length=128,
    )
    assert trainer.train().global_step == 2
    assert trainer.evaluate()["eval_loss"] > 0
    trainer.model.save_pretrained(Path(own.training_args.output_dir, "final_checkpoint"))


@pytest.mark.parametrize("launched", [False, True])
def test_fsdp_that_would_save_no_model_is_refused_before_it_is_loaded(tmp_path, monkeypatch, launched) -> None:
    config = trl.SFTConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    if launched:  # as `accelerate launch --use_fsdp --fsdp_version 2` says it
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        monkeypatch.setenv("FSDP_VERSION", "2")
    else:
        config.fsdp_plugin_args = {"fsdp_version": 2, "state_dict_type": "SHARDED_STATE_DICT"}
    with pytest.raises(ValueError, match=r"SHARDED_STATE_DICT saves no model.*FULL_STATE_DICT"):
        SFTTrainer("no-such-model", args=config, train_dataset=Dataset.from_list([{"text": "a"}]))
