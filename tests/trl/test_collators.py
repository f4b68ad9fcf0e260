"""A script's own collator, above all the one that trains only on completions."""

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
    default_data_collator,
)

from sftkit.testing import tiny_model
from sftkit_trl import DataCollatorForCompletionOnlyLM, SFTTrainer
from sftkit_trl.collators import WithRowLengths

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
HUMAN, ASSISTANT = "### Human:", "### Assistant:"


@pytest.fixture
def dialogues() -> Dataset:
    """Two turns per row."""
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


def test_the_loss_equals_the_models_own_on_the_collators_labels(make, dialogues, tokenizer) -> None:
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


def test_rows_without_the_template_warn_and_are_not_trained(make, dialogues, tokenizer) -> None:
    both = Dataset.from_list([*dialogues.to_list(), {"text": "There is no answer in this text."}])
    collator = DataCollatorForCompletionOnlyLM(ASSISTANT, tokenizer=tokenizer)
    options = {"max_seq_length": 128, "per_device_train_batch_size": 7, "max_steps": 1}
    trainer = make(args=options, train_dataset=both, data_collator=collator)
    with pytest.warns(UserWarning, match="Could not find response key"):
        texts = trained(first_batch(trainer), tokenizer)
    assert sorted(texts)[0] == ""
    assert trainer.train().training_loss > 0


def test_a_template_found_in_no_row_is_an_error_before_training(make, dialogues, tokenizer) -> None:
    collator = DataCollatorForCompletionOnlyLM("<|assistant|>", tokenizer=tokenizer)
    trainer = make(args={"max_seq_length": 128}, train_dataset=dialogues, data_collator=collator)
    with pytest.warns(UserWarning, match="Could not find"), pytest.raises(ValueError, match="nothing would be trained"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_one_row_with_the_template_is_enough_to_train(config, rows, tokenizer) -> None:
    many = Dataset.from_dict({"text": ["nothing to see here"] * 150 + [rows[0]["text"]]})
    collator = DataCollatorForCompletionOnlyLM("### A:", tokenizer=tokenizer)
    args = config(dataset_text_field="text", max_seq_length=64, max_steps=1)
    trainer = SFTTrainer(tiny_model(), args=args, train_dataset=many, tokenizer=tokenizer, data_collator=collator)
    with pytest.warns(UserWarning, match="Could not find response key") as warned:
        trainer.train()
    assert {warning.filename for warning in warned} == {__file__}


def test_packing_with_the_completion_collator_is_an_error(make, tokenizer) -> None:
    collator = DataCollatorForCompletionOnlyLM(ASSISTANT, tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"DataCollatorForCompletionOnlyLM.* not compatible .*`packing`"):
        make(args={"packing": True}, data_collator=collator)


def test_a_collator_without_padding_gives_the_same_training(make, dialogues, tokenizer) -> None:
    losses = []
    for padding_free in (False, True):
        collator = DataCollatorForCompletionOnlyLM(ASSISTANT, tokenizer=tokenizer, padding_free=padding_free)
        options = {"max_seq_length": 128, "per_device_train_batch_size": 3}
        trainer = make(args=options, train_dataset=dialogues, data_collator=collator)
        losses.append(trainer.train().training_loss)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_batches_without_padding_know_the_length_of_each_row(rows, tokenizer) -> None:
    collator = DataCollatorForCompletionOnlyLM("### A:", tokenizer=tokenizer, padding_free=True)
    examples = [{"input_ids": tokenizer(text)["input_ids"]} for text in rows["text"][:3]]
    made = WithRowLengths(collator)(examples)
    assert made["row_lengths"].tolist() == [len(example["input_ids"]) for example in examples]


def test_the_language_modeling_collator_masks_every_pad_token(make, tokenizer) -> None:
    tokenizer.pad_token = tokenizer.eos_token
    rows = Dataset.from_dict({"text": [f"{HUMAN} ask{ASSISTANT} say{tokenizer.eos_token}"] * 4})
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    batch = first_batch(make(args={"max_seq_length": 64}, train_dataset=rows, data_collator=collator))
    ends = batch["input_ids"] == tokenizer.eos_token_id
    assert ends.any()
    assert (batch["labels"][ends] == -100).all()  # unlike the default collator, which trains an EOS at the end
    default = first_batch(make(args={"max_seq_length": 64}, train_dataset=rows))
    assert (default["labels"][default["input_ids"] == tokenizer.eos_token_id] == tokenizer.eos_token_id).all()


def test_a_seq2seq_collator_pads_the_scripts_own_labels(make, rows, tokenizer) -> None:
    def encoded(row: Any) -> dict[str, Any]:
        made = tokenizer(row["text"], return_token_type_ids=False)
        return {**made, "labels": [-100] * 8 + made["input_ids"][8:]}

    prepared = rows.map(encoded, remove_columns=rows.column_names)
    collator = DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=64)
    trainer = make(train_dataset=prepared, data_collator=collator)
    batch = first_batch(trainer)
    assert batch["labels"].shape == (2, 64)
    assert (batch["labels"][:, :8] == -100).all()
    assert (batch["labels"] != -100).any()
    assert trainer.train().global_step == 2


def test_a_function_as_collator_receives_lists(make, tokenizer) -> None:
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


def test_a_collator_receives_other_columns_if_they_are_kept(make, rows, tokenizer) -> None:
    seen: set[str] = set()
    inner = DataCollatorForLanguageModeling(tokenizer, mlm=False)

    def collate(examples: list[Any]) -> Any:
        seen.update(example["answer"] for example in examples)
        return inner([{name: e[name] for name in ("input_ids", "attention_mask")} for e in examples])

    trainer = make(args={"remove_unused_columns": False, "max_steps": 4}, data_collator=collate)
    trainer.train()
    assert seen == set(rows["answer"])


def test_a_collator_may_tokenize_texts_itself(make, rows, tokenizer) -> None:
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


def test_extra_values_of_a_collator_reach_the_subclasss_loss(config, rows, tokenizer) -> None:
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
    data = {"train_dataset": rows, "eval_dataset": rows, "data_collator": collate, "tokenizer": tokenizer}
    trainer = Weighted(tiny_model(), args, **data)
    assert trainer.train().training_loss == 0.0
    assert trainer.evaluate()["eval_loss"] == 0.0


def test_a_collator_receives_the_labels_of_packed_rows(config, rows, tokenizer) -> None:
    trainer = SFTTrainer(
        tiny_model(),
        args=config(packing=True),
        train_dataset=rows,
        tokenizer=tokenizer,
        data_collator=default_data_collator,
    )
    assert trainer.train().training_loss > 0


def test_a_collator_without_labels_is_an_error(make, tokenizer) -> None:
    trainer = make(data_collator=DataCollatorWithPadding(tokenizer))
    with pytest.raises(ValueError, match="labels"):
        trainer.train()


def test_prepared_rows_can_be_passed_to_any_collator(make, rows, tokenizer) -> None:
    trainer = make(args={"max_seq_length": 64})
    batch = DataCollatorForLanguageModeling(tokenizer, mlm=False)([trainer.train_dataset[at] for at in range(3)])
    assert trainer.train_dataset.column_names == ["input_ids", "attention_mask"]
    assert batch["attention_mask"].sum() == sum(len(tokenizer(text)["input_ids"]) for text in rows["text"][:3])
