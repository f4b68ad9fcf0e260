"""What the trainer makes of data sets without packing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from PIL import Image

from sftkit.testing import tiny_model, tiny_tokenizer
from sftkit_trl import SFTConfig, SFTTrainer


def stream(rows: Dataset, times: int = 1) -> IterableDataset:
    return IterableDataset.from_generator(lambda: iter(rows.to_list() * times))


@pytest.mark.parametrize("length", [8, 32])
def test_rows_are_the_tokens_of_texts_cut_at_max_seq_length(make, rows, tokenizer, ids, length) -> None:
    trainer = make(args={"max_seq_length": length}, eval_dataset=rows.select(range(3)))
    expected = [tokenizer(text)["input_ids"][:length] for text in rows["text"]]
    assert ids(trainer.train_dataset) == expected
    assert ids(trainer.eval_dataset) == expected[:3]


@pytest.mark.parametrize(("model_max_length", "length"), [(48, 48), (10**9, 1024)])
def test_max_seq_length_defaults_to_the_tokenizers_limit_up_to_1024(make, tokenizer, model_max_length, length) -> None:
    tokenizer.model_max_length = model_max_length
    with pytest.warns(UserWarning, match=rf"`max_seq_length` argument.* default to {length}"):
        trainer = make(args={"max_seq_length": None})
    assert trainer.args.max_seq_length == length


def test_special_tokens_can_be_left_out(make, rows, tokenizer, ids) -> None:
    trainer = make(args={"dataset_kwargs": {"add_special_tokens": False}, "max_seq_length": 64})
    assert ids(trainer.train_dataset) == tokenizer(list(rows["text"]), add_special_tokens=False)["input_ids"]


def test_a_misspelt_dataset_kwarg_is_an_error(config, rows, tokenizer) -> None:
    with pytest.raises(TypeError, match="unknown add_special_token"):
        SFTTrainer(
            tiny_model(),
            args=config(dataset_kwargs={"add_special_token": False}),
            train_dataset=rows,
            tokenizer=tokenizer,
        )


def test_dataset_text_field_names_any_column(make, rows, tokenizer, ids) -> None:
    trainer = make(args={"dataset_text_field": "answer"}, train_dataset=rows)
    assert ids(trainer.train_dataset) == tokenizer(list(rows["answer"]))["input_ids"]


def test_the_column_text_has_precedence_over_instructions(make, rows, tokenizer, ids) -> None:
    data = rows.rename_columns({"question": "instruction", "answer": "output"})
    trainer = make(args={"dataset_text_field": None}, train_dataset=data)
    assert ids(trainer.train_dataset) == tokenizer(list(rows["text"]), truncation=True, max_length=32)["input_ids"]


def test_a_formatting_function_is_called_with_batches(make, rows, questions, tokenizer, ids) -> None:
    seen = []

    def function(batch: Any) -> list[str]:
        seen.append(len(batch["question"]))
        return questions(batch)

    trainer = make(args={"dataset_batch_size": 3}, formatting_func=function)
    assert ids(trainer.train_dataset) == tokenizer(questions(rows[:]))["input_ids"]
    assert seen == [3, 3, 1]


def test_a_formatting_function_must_return_a_list(make, question) -> None:
    with pytest.raises(ValueError, match="`formatting_func` should return a list"):
        make(formatting_func=question)


def test_the_formatting_function_can_run_in_several_processes(make, rows, questions, tokenizer, ids) -> None:
    trainer = make(args={"dataset_num_proc": 2}, formatting_func=questions)
    assert ids(trainer.train_dataset) == tokenizer(questions(rows[:]))["input_ids"]


def test_without_packing_the_column_overrides_the_function(make, rows, questions, tokenizer, ids) -> None:
    trainer = make(args={"dataset_text_field": "text", "max_seq_length": 64}, formatting_func=questions)
    assert ids(trainer.train_dataset) == tokenizer(list(rows["text"]))["input_ids"]


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_conversations_are_rendered_with_the_chat_template(make, conversations, tokenizer, ids, column) -> None:
    data = Dataset.from_dict({column: conversations["messages"]})
    trainer = make(args={"max_seq_length": 256}, train_dataset=data)
    texts = tokenizer.apply_chat_template(list(data[column]), tokenize=False)
    assert ids(trainer.train_dataset) == tokenizer(texts, add_special_tokens=False)["input_ids"]


def test_conversations_may_have_other_columns(make, conversations, tokenizer, ids) -> None:
    data = conversations.add_column("prompt", ["p"] * len(conversations)).add_column("prompt_id", ["i"] * 12)
    trainer = make(args={"max_seq_length": 128}, train_dataset=data)
    text = tokenizer.apply_chat_template(data[0]["messages"], tokenize=False)
    assert ids(trainer.train_dataset)[0] == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_prompts_and_completions_are_rendered_as_a_turn_each(make, tokenizer, ids) -> None:
    data = Dataset.from_list([{"prompt": f"What is {n} plus one?", "completion": f"{n + 1}"} for n in range(4)])
    trainer = make(args={"max_seq_length": 256}, train_dataset=data)
    texts = [f"user: {row['prompt']}\nassistant: {row['completion']}\n" for row in data]
    assert ids(trainer.train_dataset) == tokenizer(texts, add_special_tokens=False)["input_ids"]


def test_conversations_without_a_chat_template_are_an_error(make, conversations) -> None:
    with pytest.raises(ValueError, match="chat template"):
        make(train_dataset=conversations, tokenizer=tiny_tokenizer())


def test_rendering_only_some_data_sets_is_an_error(config, rows, tokenizer) -> None:
    pairs = Dataset.from_dict({"prompt": ["a?"], "completion": ["b"]})
    with pytest.raises(ValueError, match="Give all data sets the same columns"):
        SFTTrainer(tiny_model(), args=config(), train_dataset=rows, eval_dataset=pairs, tokenizer=tokenizer)


def test_every_token_except_the_first_and_padding_is_trained(make, rows, tokenizer) -> None:
    trainer = make(args={"per_device_train_batch_size": 7, "max_seq_length": 64})
    batch = next(iter(trainer.get_train_dataloader()))
    kept = batch["attention_mask"].bool()
    assert (batch["labels"][:, 1:][kept[:, 1:]] == batch["input_ids"][:, 1:][kept[:, 1:]]).all()
    assert (batch["labels"][~kept] == -100).all()
    assert sorted(kept.sum(1).tolist()) == sorted(len(tokenizer(text)["input_ids"]) for text in rows["text"])


def test_each_of_several_evaluation_sets_has_its_metrics(make, rows) -> None:
    sets = {"one": rows, "two": rows.select(range(2))}
    trainer = make(args={"eval_strategy": "steps", "eval_steps": 2}, eval_dataset=sets)
    trainer.train()
    logged = {name for entry in trainer.state.log_history for name in entry}
    assert {"eval_one_loss", "eval_two_loss"} <= logged
    assert {name: len(rows) for name, rows in trainer.eval_dataset.items()} == {"one": 7, "two": 2}


def test_a_trainer_may_have_only_an_evaluation_set(make, rows) -> None:
    trainer = make(args={"dataset_text_field": "text"}, train_dataset=None, eval_dataset=rows)
    assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize("packing", [True, False])
def test_skip_prepare_dataset_leaves_data_unchanged(make, rows, packing) -> None:
    options = {"dataset_kwargs": {"skip_prepare_dataset": True}, "remove_unused_columns": False, "packing": packing}
    trainer = make(args=options, eval_dataset=rows)
    assert trainer.train_dataset.features == rows.features
    assert trainer.eval_dataset.features == rows.features


def test_skip_prepare_dataset_passes_a_list_of_images_to_the_collator(make, tokenizer) -> None:
    red = [Image.new("RGB", (2, 2), (shade, 0, 0)) for shade in range(4)]
    data = [{"messages": [{"role": "user", "content": [{"type": "image", "image": image}]}]} for image in red]
    received = []

    def collator(examples: Any) -> Any:
        received.extend(examples)
        texts = [str(row["messages"][0]["content"][0]["image"].getpixel((0, 0))) for row in examples]
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        return {**batch, "labels": batch["input_ids"]}

    options = {"dataset_kwargs": {"skip_prepare_dataset": True}, "remove_unused_columns": False}
    trainer = make(args=options, train_dataset=data, eval_dataset=data, data_collator=collator)
    assert trainer.train_dataset is trainer.eval_dataset is data
    assert trainer.train().global_step == 2
    assert {id(row) for row in received} == {id(row) for row in data}


def test_rows_of_token_ids_are_used_unchanged(make, rows, questions, tokenizer) -> None:
    data = rows.map(lambda batch: tokenizer(batch["text"]), batched=True)
    with pytest.warns(UserWarning, match="`formatting_func` is not used"):
        trainer = make(train_dataset=data, formatting_func=questions)
    assert trainer.train_dataset.to_list() == data.to_list()
    assert trainer.train().training_loss > 0


def test_padding_in_rows_of_token_ids_is_not_trained(make, rows, tokenizer) -> None:
    padded = {"padding": "max_length", "max_length": 60, "truncation": True}
    data = rows.map(lambda batch: tokenizer(batch["text"], **padded), batched=True, remove_columns=rows.column_names)
    batch = next(iter(make(train_dataset=data).get_train_dataloader()))
    assert (batch["labels"][batch["input_ids"] == tokenizer.pad_token_id] == -100).all()
    assert (batch["labels"][:, 1:] == batch["input_ids"][:, 1:])[batch["attention_mask"][:, 1:].bool()].all()


def test_labels_in_rows_of_token_ids_are_kept(make, rows, tokenizer) -> None:
    def answers(row: Any) -> dict[str, Any]:
        made = tokenizer(row["text"], return_token_type_ids=False)
        return {**made, "labels": [-100] * 5 + made["input_ids"][5:]}

    data = rows.map(answers, remove_columns=rows.column_names)
    batch = next(iter(make(train_dataset=data).get_train_dataloader()))
    assert (batch["labels"][:, :5] == -100).all()
    assert (batch["labels"][:, 5:12] == batch["input_ids"][:, 5:12]).all()


def test_a_torch_data_set_is_used_unchanged(make) -> None:
    class Counting(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, at: int) -> dict[str, Any]:
            return {"input_ids": torch.arange(6) + at, "labels": torch.arange(6) + at}

    data = Counting()
    trainer = make(train_dataset=data, eval_dataset=data)
    assert trainer.train_dataset is data
    assert trainer.train().global_step == 2
    assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize("packing", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_stream_is_trained_for_max_steps(make, rows, question, packing) -> None:
    function = question if packing else lambda batch: [question(r) for r in Dataset.from_dict(batch)]
    data = {"train_dataset": stream(rows, 6), "eval_dataset": stream(rows), "formatting_func": function}
    trainer = make(args={"packing": packing, "max_steps": 4, "eval_strategy": "steps", "eval_steps": 4}, **data)
    assert trainer.train().global_step == 4
    assert any("eval_loss" in entry for entry in trainer.state.log_history)


def test_a_stream_without_max_steps_is_an_error(make, rows) -> None:
    with pytest.raises(ValueError, match="max_steps"):
        make(args={"max_steps": -1}, train_dataset=stream(rows)).train()


def test_a_resumed_stream_ends_with_the_same_weights(make, rows, tmp_path) -> None:
    def train(seed: int) -> SFTTrainer:
        data = IterableDataset.from_generator(lambda: iter(rows.to_list() * 3))
        options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "dataset_text_field": "text"}
        return make(tiny_model(seed=seed), args=options, train_dataset=data)

    whole = train(0)
    whole.train()
    (tmp_path / "out" / "checkpoint-4").rename(tmp_path / "away")
    resumed = train(1)
    resumed.train(resume_from_checkpoint=True)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_eval_strategy_without_an_evaluation_set_is_ignored(make) -> None:
    trainer = make(args={"eval_strategy": "steps", "save_strategy": "steps", "save_steps": 1})
    assert trainer.train().global_step == 2


def test_data_sets_of_a_trainer_can_be_replaced(make) -> None:
    trainer = make(args={"max_steps": -1, "num_train_epochs": 1})
    trainer.train_dataset = trainer.train_dataset.select(range(4))
    trainer.eval_dataset = trainer.train_dataset
    assert trainer.train().global_step == 2
    assert trainer.evaluate()["eval_loss"] > 0


def test_further_sets_of_token_ids_can_be_evaluated_and_predicted(make, rows, tokenizer) -> None:
    trainer = make(args={"max_seq_length": 64}, eval_dataset=rows)
    further = rows.map(lambda row: tokenizer(row["text"]), remove_columns=rows.column_names)
    expected = trainer.evaluate()["eval_loss"]
    assert trainer.evaluate(further)["eval_loss"] == pytest.approx(expected)
    assert trainer.evaluate({"more": further})["eval_more_loss"] == pytest.approx(expected)
    assert trainer.evaluate(metric_key_prefix="valid")["valid_loss"] == pytest.approx(expected)
    assert len(trainer.predict(further).predictions) == len(rows)


@pytest.mark.parametrize("packing", [False, True])
def test_batches_can_be_made_by_worker_processes(make, packing) -> None:
    trainer = make(args={"dataloader_num_workers": 1, "packing": packing})
    assert trainer.train().global_step == 2


def test_a_model_passed_by_name_gets_the_same_data(named, config, rows, tokenizer, ids) -> None:
    args: SFTConfig = config(dataset_text_field="text")
    with pytest.warns(UserWarning, match="You passed a model_id"):
        trainer = SFTTrainer(named, args=args, train_dataset=rows)
    assert ids(trainer.train_dataset) == [tokenizer(text)["input_ids"][:32] for text in rows["text"]]
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), tiny_model().parameters(), strict=True))
