"""Scripts of 2023 and 2024 that train adapters, rewritten: quantized bases, chat formats, completions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, EarlyStoppingCallback

from sftkit.testing import tiny_model, tiny_tokenizer
from sftkit_trl import (
    DataCollatorForCompletionOnlyLM,
    SFTConfig,
    SFTTrainer,
    is_xpu_available,
    set_seed,
    setup_chat_format,
)
from sftkit_trl.trainer import ConstantLengthDataset

pytest.importorskip("bitsandbytes")

CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory) -> str:
    """The name of a model whose layers can be quantized, with a tokenizer that has a chat template."""
    path = tmp_path_factory.mktemp("chat")
    tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(path)
    tiny_tokenizer(chat_template=CHAT).save_pretrained(path)
    return str(path)


def in_4_bits(name: str, **options: Any) -> Any:
    bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    return AutoModelForCausalLM.from_pretrained(name, quantization_config=bits, device_map={"": "cpu"}, **options)


def adapter_is_trained(model: Any) -> bool:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return isinstance(model, PeftModel) and any("lora_B" in name and (p != 0).any() for name, p in trained.items())


def test_qlora_trains_the_answers_of_dialogues(chat_model, arguments, tmp_path) -> None:
    text = "### Human: How old is {0}?### Assistant: {0} is old.### Human: Sure?### Assistant: Yes."
    data = Dataset.from_dict({"text": [text.format(name) for name in ("Ann", "Bob", "Eve", "Jim")]})
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    assert not is_xpu_available()
    collator = DataCollatorForCompletionOnlyLM(
        instruction_template="### Human:", response_template="### Assistant:", tokenizer=tokenizer, mlm=False
    )
    trainer = SFTTrainer(
        in_4_bits(chat_model, torch_dtype=torch.bfloat16),
        args=arguments(gradient_accumulation_steps=2, learning_rate=1e-2),
        train_dataset=data,
        dataset_text_field="text",
        data_collator=collator,
        peft_config=LoraConfig(r=4, lora_alpha=16, bias="none", task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "adapter"))
    assert adapter_is_trained(trainer.model)
    assert (tmp_path / "adapter" / "adapter_config.json").exists()
    labels = next(iter(trainer.get_train_dataloader()))["labels"]
    assert {tokenizer.decode(row[row != -100]).count("Yes.") for row in labels} == {1}


@pytest.mark.slow
def test_kbit_training_keeps_the_best_checkpoint(chat_model, conversations, config, tmp_path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    model = prepare_model_for_kbit_training(in_4_bits(chat_model), use_gradient_checkpointing=True)
    data = conversations.map(lambda row: {"text": tokenizer.apply_chat_template(row["messages"], tokenize=False)})
    split = data.train_test_split(test_size=0.3, seed=42)
    collator = DataCollatorForCompletionOnlyLM(
        response_template="<|im_start|>assistant", tokenizer=tokenizer, mlm=False
    )
    saved = {"save_strategy": "epoch", "eval_strategy": "epoch", "save_total_limit": 2, "load_best_model_at_end": True}
    saved |= {"metric_for_best_model": "eval_loss", "greater_is_better": False, "max_steps": -1, "num_train_epochs": 2}
    trainer = SFTTrainer(
        model=model,
        train_dataset=split["train"],
        eval_dataset=split["test"],
        peft_config=LoraConfig(
            r=4, lora_alpha=8, task_type="CAUSAL_LM", target_modules=LINEAR, modules_to_save=["embed_tokens", "lm_head"]
        ),
        args=config(bf16=True, optim="paged_adamw_8bit", dataset_text_field="text", max_seq_length=256, **saved),
        data_collator=collator,
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint is not None
    trainer.model.save_pretrained(tmp_path / "adapter")
    assert adapter_is_trained(trainer.model)


def test_a_chat_model_gets_chatml_and_an_adapter_before_the_trainer(chat_model, rows, arguments) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    model, tokenizer = setup_chat_format(in_4_bits(chat_model, attn_implementation="eager"), tokenizer)
    model.config.use_cache, model.config.pretraining_tp = False, 1
    model.gradient_checkpointing_enable()
    tokenizer.padding_side, tokenizer.pad_token = "right", tokenizer.eos_token
    lora = LoraConfig(r=4, lora_alpha=16, lora_dropout=0.1, task_type="CAUSAL_LM", target_modules=LINEAR)
    model = get_peft_model(prepare_model_for_kbit_training(model, use_gradient_checkpointing=True), lora)

    def prompts(entry: Any) -> list[str]:
        pairs = zip(entry["question"], entry["answer"], strict=True)
        turn = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>"
        return [turn.format(*pair) for pair in pairs]

    trainer = SFTTrainer(
        model,
        max_seq_length=128,
        tokenizer=tokenizer,
        peft_config=lora,
        train_dataset=rows,
        formatting_func=prompts,
        data_collator=DataCollatorForCompletionOnlyLM("<|im_start|>assistant", tokenizer=tokenizer),
        args=arguments(
            gradient_checkpointing=True,
            optim="paged_adamw_8bit",
            warmup_ratio=0.06,
            bf16=True,
            evaluation_strategy="no",
            learning_rate=1e-2,
        ),
    )
    trainer.train()
    assert trainer.model is model
    assert adapter_is_trained(model)
    labels = next(iter(trainer.get_train_dataloader()))["labels"]
    assert ((labels == tokenizer.eos_token_id).sum(1) == 1).all()  # the answer's end, although padding has the same id


def test_a_trained_chat_adapter_answers(chat_model, rows, arguments) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(chat_model), AutoTokenizer.from_pretrained(chat_model)
    model, tokenizer = setup_chat_format(model, tokenizer)
    lora = LoraConfig(r=4, lora_alpha=32, lora_dropout=0.05, task_type="CAUSAL_LM", target_modules=LINEAR)
    model = get_peft_model(model, lora)

    def rendered(row: Any) -> Any:
        turns = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        return {"text": tokenizer.apply_chat_template(turns, tokenize=False)}

    data = rows.map(rendered).train_test_split(test_size=0.3, seed=1)
    trainer = SFTTrainer(
        model=model,
        train_dataset=data["train"],
        eval_dataset=data["test"],
        peft_config=lora,
        max_seq_length=512,
        dataset_text_field="text",
        tokenizer=tokenizer,
        args=arguments(
            optim="paged_adamw_32bit", evaluation_strategy="steps", eval_steps=0.5, warmup_steps=1, group_by_length=True
        ),
        packing=False,
    )
    trainer.train()
    assert len([entry for entry in trainer.state.log_history if "eval_loss" in entry]) == 2
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Can a cow fly?"}], tokenize=False, add_generation_prompt=True
    )
    inputs = tokenizer(asked, return_tensors="pt")
    answer = model.generate(**inputs, max_new_tokens=4)
    assert answer.shape[1] > inputs["input_ids"].shape[1]


def test_joined_conversations_train_an_adapter_with_float32_norms(chat_model, rows, arguments) -> None:
    def as_turns(question: str, answer: str) -> Dataset:
        made = rows.map(
            lambda row: {
                "messages": [{"role": "user", "content": row[question]}, {"role": "assistant", "content": row[answer]}]
            }
        )
        return made.select_columns("messages")

    from datasets import concatenate_datasets

    data = concatenate_datasets([as_turns("question", "answer"), as_turns("text", "answer")])
    tokenizer = AutoTokenizer.from_pretrained(chat_model, padding_side="left", add_eos_token=True, add_bos_token=True)
    tokenizer.pad_token = tokenizer.eos_token
    model, tokenizer = setup_chat_format(AutoModelForCausalLM.from_pretrained(chat_model), tokenizer)
    trainer = SFTTrainer(
        model=model,
        train_dataset=data,
        peft_config=LoraConfig(r=4, lora_alpha=16, lora_dropout=0.1, bias="none", task_type="CAUSAL_LM"),
        tokenizer=tokenizer,
        args=arguments(
            bf16=True, warmup_ratio=0.03, group_by_length=False, lr_scheduler_type="constant", max_grad_norm=0.3
        ),
        max_seq_length=512,
    )
    for name, module in trainer.model.named_modules():
        if "norm" in name:
            module.to(torch.float32)
    trainer.train()
    assert adapter_is_trained(trainer.model)
    assert len(trainer.train_dataset) == 14
    assert tokenizer.decode(trainer.train_dataset[0]["input_ids"]).count("<|im_end|>") == 2


def test_an_8_bit_base_is_trained_on_constant_length_data(chat_model, rows, arguments, tmp_path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chat_model)

    def text_of(example: Any) -> str:
        return f"Prompt: {example['question']}\n\nCode: {example['answer']}"

    texts = [text_of(row) for row in rows]
    ratio = sum(map(len, texts)) / sum(len(tokenizer(text).tokens()) for text in texts)
    sets = [
        ConstantLengthDataset(
            tokenizer, rows, formatting_func=text_of, infinite=infinite, seq_length=32, chars_per_token=ratio
        )
        for infinite in (True, False)
    ]
    sets[0].start_iteration = 0
    model = AutoModelForCausalLM.from_pretrained(
        chat_model, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map={"": "cpu"}
    )
    args = arguments(
        dataloader_drop_last=True,
        evaluation_strategy="steps",
        eval_steps=2,
        gradient_checkpointing=True,
        ddp_find_unused_parameters=False,
        learning_rate=1e-2,
    )
    lora = LoraConfig(r=4, lora_alpha=32, lora_dropout=0.05, bias="none", task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model=model, args=args, train_dataset=sets[0], eval_dataset=sets[1], peft_config=lora, packing=True
    )
    trainer.train()
    trainer.model.save_pretrained(tmp_path / "final_checkpoint")
    assert adapter_is_trained(trainer.model)
    assert any("eval_loss" in entry for entry in trainer.state.log_history)


def test_early_stopping_watches_a_noisy_adapter(chat_model, conversations, arguments) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    base = AutoModelForCausalLM.from_pretrained(chat_model)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    template = tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
    trainer = SFTTrainer(
        model=model,
        args=arguments(
            max_steps=3,
            gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": False},
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="steps",
            save_steps=1,
            save_total_limit=1,
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            report_to=[],
        ),
        train_dataset=conversations.select(range(4)),
        eval_dataset=conversations.select(range(4)),
        formatting_func=lambda rows: [tokenizer.apply_chat_template(one, tokenize=False) for one in rows["messages"]],
        data_collator=DataCollatorForCompletionOnlyLM(template, tokenizer=tokenizer),
        max_seq_length=256,
        tokenizer=tokenizer,
        neftune_noise_alpha=5,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=10)],
    )
    assert 0 < trainer.train().training_loss < 50
    assert trainer.state.best_metric == min(e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e)


def test_a_seeded_script_trains_the_feed_forward_layers(chat_model, arguments) -> None:
    set_seed(8888)
    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    model = AutoModelForCausalLM.from_pretrained(chat_model, torch_dtype=torch.bfloat16)
    model.resize_token_embeddings(len(tokenizer))
    template = tokenizer.encode("\n### Assistant:", add_special_tokens=False)[1:]
    data = Dataset.from_dict({"query": [f"### Human: Say {n}.\n### Assistant: {n}" for n in range(8)]}).shuffle()
    trainer = SFTTrainer(
        model=model,
        args=arguments(dataloader_drop_last=True, run_name="sft", report_to="none", learning_rate=1e-2),
        train_dataset=data,
        peft_config=LoraConfig(r=4, target_modules=["gate_proj", "up_proj", "down_proj"], task_type="CAUSAL_LM"),
        packing=False,
        dataset_text_field="query",
        data_collator=DataCollatorForCompletionOnlyLM(response_template=template, tokenizer=tokenizer, mlm=False),
    )
    trainer.train()
    assert adapter_is_trained(trainer.model)


def test_dialogues_are_cut_on_the_left_once_the_function_ran(chat_model, rows, tmp_path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(chat_model, model_max_length=100, padding="max_length", truncation=True)

    def prompts(example: Any) -> list[str]:
        tokenizer.padding_side, tokenizer.truncation_side = "right", "left"
        pairs = zip(example["question"], example["answer"], strict=True)
        return [f"### Prompt: {question}\n ### Response: {answer}" for question, answer in pairs]

    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(chat_model),
        train_dataset=rows,
        args=SFTConfig(output_dir=str(tmp_path), max_seq_length=20, use_cpu=True, report_to="none", max_steps=1),
        formatting_func=prompts,
        tokenizer=tokenizer,
        data_collator=DataCollatorForCompletionOnlyLM(" ### Response:", tokenizer=tokenizer),
        peft_config=LoraConfig(r=4, task_type="CAUSAL_LM"),
    )
    assert all(tokenizer.decode(row["input_ids"]).endswith(".") for row in trainer.train_dataset)  # the answer's end
    assert trainer.train().global_step == 1
