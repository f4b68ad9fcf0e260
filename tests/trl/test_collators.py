"""Collators of one's own in the facade's trainer, first of all the one that trains only on completions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
)

from sftkit.testing import tiny_model
from sftkit_trl import DataCollatorForCompletionOnlyLM

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
HUMAN, ASSISTANT = "### Human:", "### Assistant:"


@pytest.fixture
def dialogues() -> Dataset:
    """Two turns a row."""
    turns = [f"{HUMAN} ask {n}{ASSISTANT} say {n}{HUMAN} ask more{ASSISTANT} say more" for n in range(6)]
    return Dataset.from_dict({"text": turns})


def first_batch(trainer: Any) -> Any:
    return next(iter(trainer.get_train_dataloader()))


def trained(batch: Any, tokenizer: Any) -> list[str]:
    return [tokenizer.decode(row[row != -100]) for row in batch["labels"]]


def test_only_answers_are_in_the_labels(make, dialogues, tokenizer) -> None:
    collator = DataCollatorForCompletionOnlyLM(ASSISTANT, HUMAN, tokenizer=tokenizer)
    options = {"max_seq_length": 128, "per_device_train_batch_size": 6}
    trainer = make(args=options, train_dataset=dialogues, data_collator=collator)
    texts = trained(first_batch(trainer), tokenizer)
    assert sorted(texts) == [f" say {n} say more" for n in range(6)]
    assert trainer.train().training_loss > 0


def test_the_loss_is_that_of_the_models_on_the_collators_labels(make, dialogues, tokenizer) -> None:
    collator = DataCollatorForCompletionOnlyLM(ASSISTANT, tokenizer=tokenizer)
    trainer = make(args={"max_seq_length": 128}, eval_dataset=dialogues, data_collator=collator)
    batch = collator([tokenizer(text) for text in dialogues["text"]])
    with torch.no_grad():
        expected = tiny_model()(**batch).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["gpt2_tokenizer", "llama2_tokenizer"])
def test_a_template_of_token_ids_is_found_in_its_context(make, name) -> None:
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs {SHARED / name}")
    tokenizer = AutoTokenizer.from_pretrained(SHARED / name)
    tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    response = tokenizer.encode(f"\n{ASSISTANT}", add_special_tokens=False)[2:]
    rows = Dataset.from_dict({"text": [f"### User: Hello {n}\n\n{ASSISTANT} Hi {n}" for n in range(4)]})
    collator = DataCollatorForCompletionOnlyLM(response, tokenizer=tokenizer)
    model = tiny_model(vocab_size=len(tokenizer))
    options = {"max_seq_length": 64, "per_device_train_batch_size": 4}
    trainer = make(model, args=options, train_dataset=rows, data_collator=collator, tokenizer=tokenizer)
    assert sorted(text.strip() for text in trained(first_batch(trainer), tokenizer)) == [f"Hi {n}" for n in range(4)]


def test_rows_without_the_template_are_told_and_not_trained(make, dialogues, tokenizer) -> None:
    both = Dataset.from_list([*dialogues.to_list(), {"text": "There is no answer in this text."}])
    collator = DataCollatorForCompletionOnlyLM(ASSISTANT, tokenizer=tokenizer)
    options = {"max_seq_length": 128, "per_device_train_batch_size": 7, "max_steps": 1}
    trainer = make(args=options, train_dataset=both, data_collator=collator)
    with pytest.warns(UserWarning, match="Could not find response key"):
        texts = trained(first_batch(trainer), tokenizer)
    assert sorted(texts)[0] == ""
    assert trainer.train().training_loss > 0


def test_a_template_that_is_in_no_row_is_an_error_before_the_first_step(make, dialogues, tokenizer) -> None:
    collator = DataCollatorForCompletionOnlyLM("<|assistant|>", tokenizer=tokenizer)
    trainer = make(args={"max_seq_length": 128}, train_dataset=dialogues, data_collator=collator)
    with pytest.warns(UserWarning, match="Could not find"), pytest.raises(ValueError, match="nothing would be trained"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_packing_with_the_completion_collator_is_an_error(make, tokenizer) -> None:
    collator = DataCollatorForCompletionOnlyLM(ASSISTANT, tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"DataCollatorForCompletionOnlyLM.* not compatible .*`packing`"):
        make(args={"packing": True}, data_collator=collator)


def test_a_collator_without_padding_trains_the_same(make, dialogues, tokenizer) -> None:
    losses = []
    for padding_free in (False, True):
        collator = DataCollatorForCompletionOnlyLM(ASSISTANT, tokenizer=tokenizer, padding_free=padding_free)
        options = {"max_seq_length": 128, "per_device_train_batch_size": 3}
        trainer = make(args=options, train_dataset=dialogues, data_collator=collator)
        losses.append(trainer.train().training_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_the_collator_for_language_modeling_leaves_out_the_pad_token_wherever_it_is(make, tokenizer) -> None:
    tokenizer.pad_token = tokenizer.eos_token
    rows = Dataset.from_dict({"text": [f"{HUMAN} ask{ASSISTANT} say{tokenizer.eos_token}"] * 4})
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    batch = first_batch(make(args={"max_seq_length": 64}, train_dataset=rows, data_collator=collator))
    ends = batch["input_ids"] == tokenizer.eos_token_id
    assert ends.any()
    assert (batch["labels"][ends] == -100).all()  # as that collator does; the default trains an EOS that ends a text
    default = first_batch(make(args={"max_seq_length": 64}, train_dataset=rows))
    assert (default["labels"][default["input_ids"] == tokenizer.eos_token_id] == tokenizer.eos_token_id).all()


def test_a_collator_for_labels_of_ones_own_pads_them(make, rows, tokenizer) -> None:
    def row(given: Any) -> dict[str, Any]:
        made = tokenizer(given["text"], return_token_type_ids=False)
        return {**made, "labels": [-100] * 8 + made["input_ids"][8:]}

    prepared = rows.map(row, remove_columns=rows.column_names)
    collator = DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=64)
    trainer = make(train_dataset=prepared, data_collator=collator)
    batch = first_batch(trainer)
    assert batch["labels"].shape == (2, 64)
    assert (batch["labels"][:, :8] == -100).all()
    assert (batch["labels"] != -100).any()
    assert trainer.train().global_step == 2


def test_a_function_is_a_collator_and_gets_lists(make, tokenizer) -> None:
    seen = []

    def collate(examples: list[Any]) -> Any:
        seen.extend(examples)
        batch = tokenizer.pad([{name: e[name] for name in ("input_ids", "attention_mask")} for e in examples])
        tensors = {name: torch.tensor(values) for name, values in batch.items()}
        return {**tensors, "labels": tensors["input_ids"].masked_fill(tensors["attention_mask"] == 0, -100)}

    trainer = make(data_collator=collate)
    assert trainer.train().global_step == 2
    assert {name for example in seen for name in example} == {"input_ids", "attention_mask"}
    assert all(isinstance(example["input_ids"], list) for example in seen)


def test_with_all_columns_kept_a_collator_sees_them(make, rows, tokenizer) -> None:
    seen: set[str] = set()
    inner = DataCollatorForLanguageModeling(tokenizer, mlm=False)

    def collate(examples: list[Any]) -> Any:
        seen.update(example["answer"] for example in examples)
        return inner([{name: e[name] for name in ("input_ids", "attention_mask")} for e in examples])

    trainer = make(args={"remove_unused_columns": False, "max_steps": 4}, data_collator=collate)
    trainer.train()
    assert seen == set(rows["answer"])


def test_a_collator_may_tokenize_itself(make, rows, tokenizer) -> None:
    def collate(examples: list[Any]) -> Any:
        texts = [example["text"] for example in examples]
        batch = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
        return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}

    options = {"remove_unused_columns": False, "dataset_kwargs": {"skip_prepare_dataset": True}}
    trainer = make(args={**options, "max_seq_length": 64}, data_collator=collate, eval_dataset=rows)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(
        make(args={"max_seq_length": 64}, eval_dataset=rows).evaluate()["eval_loss"], rel=1e-5
    )
    assert trainer.train().global_step == 2


def test_a_collator_that_makes_no_labels_is_an_error_that_says_so(make, tokenizer) -> None:
    trainer = make(data_collator=DataCollatorWithPadding(tokenizer))
    with pytest.raises(ValueError, match="gives no labels"):
        trainer.train()


def test_rows_of_the_trainer_go_into_any_collator(make, rows, tokenizer) -> None:
    trainer = make(args={"max_seq_length": 64})
    batch = DataCollatorForLanguageModeling(tokenizer, mlm=False)([trainer.train_dataset[at] for at in range(3)])
    assert trainer.train_dataset.column_names == ["input_ids", "attention_mask"]
    assert batch["attention_mask"].sum() == sum(len(tokenizer(text)["input_ids"]) for text in rows["text"][:3])
