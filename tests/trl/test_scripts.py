"""Whole scripts as people wrote them in 2023 and 2024, each with data and models of its own size."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset, load_dataset
from peft import AutoPeftModelForCausalLM, LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForLanguageModeling, TrainerCallback

from sftkit.testing import tiny_model, tiny_tokenizer
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


def test_the_script_for_the_command_line(named, conversations, tmp_path) -> None:
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


def test_conversations_rendered_beforehand_and_packed_without_further_tokens(config, named, conversations, ids) -> None:
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


def test_an_adapter_is_trained_saved_and_merged(config, named, rows, tmp_path) -> None:
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


def test_rows_are_rendered_by_a_prompt_of_ones_own(config, named, tmp_path) -> None:
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


def test_a_stream_is_split_and_packed(config, named, question, rows, tmp_path) -> None:
    lines(tmp_path / "data" / "rows.jsonl", Dataset.from_list(rows.to_list() * 6))
    data = load_dataset("json", data_files=str(tmp_path / "data" / "*.jsonl"), split="train", streaming=True)
    args = config(packing=True, max_steps=8, eval_strategy="steps", eval_steps=4, eval_packing=False)
    train = data.skip(5).shuffle(buffer_size=10, seed=0)
    trainer = SFTTrainer(named, args, train_dataset=train, eval_dataset=data.take(5), formatting_func=question)
    assert trainer.train().global_step == 8
    assert len([entry for entry in trainer.state.log_history if "eval_loss" in entry]) == 2


def test_a_stream_is_resumed(make, rows, tmp_path) -> None:
    def train(seed: int) -> SFTTrainer:
        given = IterableDataset.from_generator(lambda: iter(rows.to_list() * 3))
        options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "dataset_text_field": "text"}
        return make(tiny_model(seed=seed), args=options, train_dataset=given)

    whole = train(0)
    whole.train()
    (tmp_path / "out" / "checkpoint-4").rename(tmp_path / "away")
    resumed = train(1)
    resumed.train(resume_from_checkpoint=True)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_conversations_may_have_other_columns_beside_them(make, conversations, tokenizer, ids) -> None:
    given = conversations.add_column("prompt", ["p"] * len(conversations)).add_column("prompt_id", ["i"] * 12)
    trainer = make(args={"max_seq_length": 128}, train_dataset=given)
    text = tokenizer.apply_chat_template(given[0]["messages"], tokenize=False)
    assert ids(trainer.train_dataset)[0] == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_sets_of_token_ids_can_be_evaluated_and_predicted_later(make, rows, tokenizer) -> None:
    trainer = make(args={"max_seq_length": 64}, eval_dataset=rows)
    further = rows.map(lambda row: tokenizer(row["text"]), remove_columns=rows.column_names)
    expected = trainer.evaluate()["eval_loss"]
    assert trainer.evaluate(further)["eval_loss"] == pytest.approx(expected)
    assert trainer.evaluate({"more": further})["eval_more_loss"] == pytest.approx(expected)
    assert trainer.evaluate(metric_key_prefix="valid")["valid_loss"] == pytest.approx(expected)
    assert len(trainer.predict(further).predictions) == len(rows)


def test_metrics_can_have_the_inputs(make, rows, tokenizer) -> None:
    def metrics(prediction: Any) -> dict[str, Any]:
        return {"first": int(prediction.inputs[0][0])}

    options = {"include_inputs_for_metrics": True, "eval_accumulation_steps": 1}
    trainer = make(args=options, eval_dataset=rows, compute_metrics=metrics)
    assert trainer.evaluate()["eval_first"] == tokenizer.bos_token_id


def test_weights_of_rows_reach_a_loss_of_ones_own(config, rows, tokenizer) -> None:
    inner = DataCollatorForLanguageModeling(tokenizer, mlm=False)

    def collate(examples: list[Any]) -> Any:
        batch = inner([tokenizer(example["text"]) for example in examples])
        return {**batch, "weights": torch.zeros(len(examples)), "names": [example["question"] for example in examples]}

    class Weighted(SFTTrainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
            weights = inputs.pop("weights")
            assert all(name.startswith("Can a") for name in inputs.pop("names"))
            outputs = model(**inputs)
            loss = outputs.loss * weights.mean()
            return (loss, outputs) if return_outputs else loss

    args = config(remove_unused_columns=False, dataset_kwargs={"skip_prepare_dataset": True})
    given = {"train_dataset": rows, "eval_dataset": rows, "data_collator": collate, "tokenizer": tokenizer}
    trainer = Weighted(tiny_model(), args, **given)
    assert trainer.train().training_loss == 0.0
    assert trainer.evaluate()["eval_loss"] == 0.0


def test_a_pad_token_that_the_model_has_no_row_for_does_no_harm(make) -> None:
    tokenizer = tiny_tokenizer(pad=False)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    model = tiny_model(vocab_size=len(tokenizer) - 1)
    assert make(model, tokenizer=tokenizer).train().training_loss > 0


def test_frozen_layers_stay_as_they_are(make) -> None:
    model = tiny_model()
    for parameter in model.model.layers[0].parameters():
        parameter.requires_grad = False
    make(model, args={"learning_rate": 1e-2}).train()
    other = tiny_model()
    same = [torch.equal(a, b) for a, b in zip(model.model.parameters(), other.model.parameters(), strict=True)]
    frozen = [not parameter.requires_grad for parameter in model.model.parameters()]
    assert same == frozen


@pytest.mark.parametrize("options", [{"target_modules": ["q_proj", "lm_head"]}, {"modules_to_save": ["lm_head"]}])
def test_the_head_can_be_adapted_or_trained_beside_an_adapter(make, options) -> None:
    trainer = make(args={"learning_rate": 1e-2}, peft_config=LoraConfig(task_type="CAUSAL_LM", **options))
    before = {name: p.clone() for name, p in trainer.model.named_parameters() if "lm_head" in name and p.requires_grad}
    assert before
    trainer.train()
    now = dict(trainer.model.named_parameters())
    changed = [name for name, value in before.items() if not torch.equal(value, now[name])]
    assert any("lora_B" in name or "modules_to_save" in name for name in changed)


def test_a_callback_saves_the_adapter(make, tmp_path) -> None:
    class Saves(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> Any:
            given["model"].save_pretrained(Path(args.output_dir, f"adapter-{state.global_step}"))
            return control

    options = {"save_strategy": "steps", "save_steps": 1}
    make(args=options, callbacks=[Saves], peft_config=LoraConfig(task_type="CAUSAL_LM")).train()
    assert (tmp_path / "out" / "adapter-2" / "adapter_model.safetensors").is_file()


def test_the_configuration_can_be_copied_changed_and_pickled(config) -> None:
    args = config(packing=True, evaluation_strategy="steps", eval_steps=3)
    for copied in (
        copy.deepcopy(args),
        pickle.loads(pickle.dumps(args)),
        dataclasses.replace(args),
        SFTConfig(**args.to_dict()),
    ):
        assert (copied.packing, copied.max_seq_length, copied.eval_strategy) == (True, 32, args.eval_strategy)
    args.set_training(batch_size=3, num_epochs=1).set_save("no").set_logging(steps=1)
    assert (args.per_device_train_batch_size, args.packing) == (3, True)


def test_sets_can_be_replaced_in_the_trainer(make) -> None:
    trainer = make(args={"max_steps": -1, "num_train_epochs": 1})
    trainer.train_dataset = trainer.train_dataset.select(range(4))
    trainer.eval_dataset = trainer.train_dataset
    assert trainer.train().global_step == 2
    assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize("packing", [False, True])
def test_batches_are_made_in_processes(make, packing) -> None:
    trainer = make(args={"dataloader_num_workers": 1, "packing": packing})
    assert trainer.train().global_step == 2


@pytest.mark.parametrize(("steps", "expected"), [(1, 4), (2, 2)])
def test_an_epoch_has_a_step_for_each_accumulated_batch(make, steps, expected) -> None:
    trainer = make(args={"max_steps": -1, "num_train_epochs": 1, "gradient_accumulation_steps": steps})
    assert trainer.train().global_step == expected
