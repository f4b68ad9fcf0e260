"""What the facade makes of data sets: rows of token ids, packed or not, or what it was given."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset

from sftkit.testing import tiny_model, tiny_tokenizer
from sftkit_trl import ConstantLengthDataset, SFTConfig, SFTTrainer


def stream(rows: Dataset, times: int = 1) -> IterableDataset:
    return IterableDataset.from_generator(lambda: iter(rows.to_list() * times))


@pytest.mark.parametrize("length", [8, 32])
def test_rows_are_the_texts_tokens_cut_at_max_seq_length(make, rows, tokenizer, ids, length) -> None:
    trainer = make(args={"max_seq_length": length}, eval_dataset=rows.select(range(3)))
    expected = [tokenizer(text)["input_ids"][:length] for text in rows["text"]]
    assert ids(trainer.train_dataset) == expected
    assert ids(trainer.eval_dataset) == expected[:3]


@pytest.mark.parametrize(("model_max_length", "length"), [(48, 48), (10**9, 1024)])
def test_max_seq_length_is_the_tokenizers_but_at_most_1024_and_that_is_told(
    make, tokenizer, model_max_length, length
) -> None:
    tokenizer.model_max_length = model_max_length
    with pytest.warns(UserWarning, match=rf"`max_seq_length` argument.* default to {length}"):
        trainer = make(args={"max_seq_length": None})
    assert trainer.args.max_seq_length == length


def test_special_tokens_can_be_left_out(make, rows, tokenizer, ids) -> None:
    trainer = make(args={"dataset_kwargs": {"add_special_tokens": False}, "max_seq_length": 64})
    assert ids(trainer.train_dataset) == tokenizer(list(rows["text"]), add_special_tokens=False)["input_ids"]


def test_dataset_text_field_names_any_column(make, rows, tokenizer, ids) -> None:
    trainer = make(args={"dataset_text_field": "answer"}, train_dataset=rows)
    assert ids(trainer.train_dataset) == tokenizer(list(rows["answer"]))["input_ids"]


def test_a_formatting_function_gets_batches_of_rows(make, rows, questions, tokenizer, ids) -> None:
    seen = []

    def function(batch: Any) -> list[str]:
        seen.append(len(batch["question"]))
        return questions(batch)

    trainer = make(args={"dataset_batch_size": 3}, formatting_func=function)
    assert ids(trainer.train_dataset) == tokenizer(questions(rows[:]))["input_ids"]
    assert seen == [3, 3, 1]


def test_a_formatting_function_that_makes_no_list_is_an_error(make, question) -> None:
    with pytest.raises(ValueError, match="`formatting_func` should return a list"):
        make(formatting_func=question)


def test_the_formatting_function_runs_in_processes(make, rows, questions, tokenizer, ids) -> None:
    trainer = make(args={"dataset_num_proc": 2}, formatting_func=questions)
    assert ids(trainer.train_dataset) == tokenizer(questions(rows[:]))["input_ids"]


def test_without_packing_the_column_goes_before_the_function(make, rows, questions, tokenizer, ids) -> None:
    trainer = make(args={"dataset_text_field": "text", "max_seq_length": 64}, formatting_func=questions)
    assert ids(trainer.train_dataset) == tokenizer(list(rows["text"]))["input_ids"]


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_conversations_are_rendered_with_the_chat_template(make, conversations, tokenizer, ids, column) -> None:
    given = Dataset.from_dict({column: conversations["messages"]})
    trainer = make(args={"max_seq_length": 256}, train_dataset=given)
    texts = tokenizer.apply_chat_template(list(given[column]), tokenize=False)
    assert ids(trainer.train_dataset) == tokenizer(texts, add_special_tokens=False)["input_ids"]


def test_prompts_and_completions_are_rendered_as_a_turn_each(make, tokenizer, ids) -> None:
    given = Dataset.from_list([{"prompt": f"What is {n} plus one?", "completion": f"{n + 1}"} for n in range(4)])
    trainer = make(args={"max_seq_length": 256}, train_dataset=given)
    texts = [f"user: {row['prompt']}\nassistant: {row['completion']}\n" for row in given]
    assert ids(trainer.train_dataset) == tokenizer(texts, add_special_tokens=False)["input_ids"]


def test_conversations_without_a_chat_template_are_an_error(make, conversations) -> None:
    with pytest.raises(ValueError, match="chat template"):
        make(train_dataset=conversations, tokenizer=tiny_tokenizer())


def test_every_token_of_a_text_is_trained_but_the_first_and_padding(make, rows, tokenizer) -> None:
    trainer = make(args={"per_device_train_batch_size": 7, "max_seq_length": 64})
    batch = next(iter(trainer.get_train_dataloader()))
    kept = batch["attention_mask"].bool()
    assert (batch["labels"][:, 1:][kept[:, 1:]] == batch["input_ids"][:, 1:][kept[:, 1:]]).all()
    assert (batch["labels"][~kept] == -100).all()
    assert sorted(kept.sum(1).tolist()) == sorted(len(tokenizer(text)["input_ids"]) for text in rows["text"])


@pytest.mark.parametrize("appended", [True, False])
@pytest.mark.parametrize("special", [True, False])
def test_packed_rows_are_those_of_the_plain_stream(make, rows, tokenizer, ids, appended, special) -> None:
    options = {"append_concat_token": appended, "add_special_tokens": special}
    trainer = make(args={"packing": True, "max_seq_length": 16, "dataset_kwargs": options})
    reference = ConstantLengthDataset(tokenizer, rows, "text", seq_length=16, shuffle=False, **options)
    assert ids(trainer.train_dataset) == ids(reference)


def test_with_packing_the_function_gets_one_row(make, rows, question, tokenizer, ids) -> None:
    trainer = make(args={"packing": True, "max_seq_length": 16}, formatting_func=question)
    reference = ConstantLengthDataset(tokenizer, rows, formatting_func=question, seq_length=16, shuffle=False)
    assert ids(trainer.train_dataset) == ids(reference)


def test_with_packing_the_function_goes_before_the_column(make, rows, question, tokenizer, ids) -> None:
    options = {"packing": True, "max_seq_length": 16, "dataset_text_field": "text"}
    trainer = make(args=options, formatting_func=question)
    reference = ConstantLengthDataset(tokenizer, rows, formatting_func=question, seq_length=16, shuffle=False)
    assert ids(trainer.train_dataset) == ids(reference)


def test_packed_conversations_have_no_special_tokens_but_the_templates(make, conversations, tokenizer, ids) -> None:
    trainer = make(args={"packing": True}, train_dataset=conversations)
    reference = ConstantLengthDataset(
        tokenizer,
        conversations,
        formatting_func=lambda row: tokenizer.apply_chat_template(row["messages"], tokenize=False),
        seq_length=32,
        shuffle=False,
        add_special_tokens=False,
    )
    assert ids(trainer.train_dataset) == ids(reference)
    assert all(tokenizer.bos_token_id not in row for row in ids(trainer.train_dataset))


def test_packed_documents_do_not_see_each_other(make) -> None:
    trainer = make(args={"packing": True})
    batch = next(iter(trainer.get_train_dataloader()))
    assert "attention_mask" not in batch
    assert (batch["position_ids"] == 0).sum() > len(batch["input_ids"])


def test_too_little_data_for_a_packed_row_is_an_error(make) -> None:
    with pytest.raises(ValueError, match="no row is left"):
        make(args={"packing": True, "max_seq_length": 1024})


def test_packing_columns_of_no_known_kind_is_an_error(make, rows) -> None:
    with pytest.raises(ValueError, match="question"):
        make(args={"packing": True}, train_dataset=rows.remove_columns("text"))


@pytest.mark.parametrize("eval_packing", [None, True, False])
def test_evaluation_sets_are_packed_as_asked(make, rows, ids, eval_packing) -> None:
    trainer = make(args={"packing": True, "eval_packing": eval_packing}, eval_dataset=rows)
    if eval_packing is False:
        assert len(trainer.eval_dataset) == len(rows)
    else:
        assert ids(trainer.eval_dataset) == ids(trainer.train_dataset)


def test_each_of_several_evaluation_sets_has_its_metrics(make, rows) -> None:
    sets = {"one": rows, "two": rows.select(range(2))}
    trainer = make(args={"eval_strategy": "steps", "eval_steps": 2}, eval_dataset=sets)
    trainer.train()
    told = {name for entry in trainer.state.log_history for name in entry}
    assert {"eval_one_loss", "eval_two_loss"} <= told
    assert {name: len(rows) for name, rows in trainer.eval_dataset.items()} == {"one": 7, "two": 2}


def test_a_trainer_may_have_nothing_but_an_evaluation_set(make, rows) -> None:
    trainer = make(args={"dataset_text_field": "text"}, train_dataset=None, eval_dataset=rows)
    assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize("packing", [True, False])
def test_skip_prepare_dataset_leaves_the_data_as_they_are(make, rows, packing) -> None:
    options = {"dataset_kwargs": {"skip_prepare_dataset": True}, "remove_unused_columns": False, "packing": packing}
    trainer = make(args=options, eval_dataset=rows)
    assert trainer.train_dataset.features == rows.features
    assert trainer.eval_dataset.features == rows.features


def test_rows_of_token_ids_are_left_as_they_are(make, rows, questions, tokenizer) -> None:
    given = rows.map(lambda batch: tokenizer(batch["text"]), batched=True)
    with pytest.warns(UserWarning, match="`formatting_func` is not used"):
        trainer = make(train_dataset=given, formatting_func=questions)
    assert trainer.train_dataset.to_list() == given.to_list()
    assert trainer.train().training_loss > 0


def test_padding_in_rows_of_token_ids_is_not_trained(make, rows, tokenizer) -> None:
    padded = {"padding": "max_length", "max_length": 60, "truncation": True}
    given = rows.map(lambda batch: tokenizer(batch["text"], **padded), batched=True, remove_columns=rows.column_names)
    batch = next(iter(make(train_dataset=given).get_train_dataloader()))
    assert (batch["labels"][batch["input_ids"] == tokenizer.pad_token_id] == -100).all()
    assert (batch["labels"][:, 1:] == batch["input_ids"][:, 1:])[batch["attention_mask"][:, 1:].bool()].all()


def test_labels_in_rows_of_token_ids_are_kept(make, rows, tokenizer) -> None:
    def answers(row: Any) -> dict[str, Any]:
        made = tokenizer(row["text"], return_token_type_ids=False)
        return {**made, "labels": [-100] * 5 + made["input_ids"][5:]}

    given = rows.map(answers, remove_columns=rows.column_names)
    batch = next(iter(make(train_dataset=given).get_train_dataloader()))
    assert (batch["labels"][:, :5] == -100).all()
    assert (batch["labels"][:, 5:12] == batch["input_ids"][:, 5:12]).all()


def test_a_torch_data_set_is_used_as_it_is(make) -> None:
    class Counting(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, at: int) -> dict[str, Any]:
            return {"input_ids": torch.arange(6) + at, "labels": torch.arange(6) + at}

    given = Counting()
    trainer = make(train_dataset=given, eval_dataset=given)
    assert trainer.train_dataset is given
    assert trainer.train().global_step == 2
    assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize("packing", [True, False])
def test_a_stream_is_trained_for_max_steps(make, rows, question, packing) -> None:
    function = question if packing else lambda batch: [question(r) for r in Dataset.from_dict(batch)]
    given = {"train_dataset": stream(rows, 6), "eval_dataset": stream(rows), "formatting_func": function}
    trainer = make(args={"packing": packing, "max_steps": 4, "eval_strategy": "steps", "eval_steps": 4}, **given)
    assert trainer.train().global_step == 4
    assert any("eval_loss" in entry for entry in trainer.state.log_history)


def test_a_stream_without_max_steps_is_an_error(make, rows) -> None:
    with pytest.raises(ValueError, match="max_steps"):
        make(args={"max_steps": -1}, train_dataset=stream(rows)).train()


def constant(rows: Dataset, tokenizer: Any, **options: Any) -> ConstantLengthDataset:
    return ConstantLengthDataset(tokenizer, rows, "text", seq_length=16, num_of_sequences=16, **options)


def test_a_constant_length_data_set_is_infinite_with_max_steps(make, rows, tokenizer) -> None:
    given = constant(rows, tokenizer)
    trainer = make(args={"packing": True, "max_steps": 30}, train_dataset=given, eval_dataset=constant(rows, tokenizer))
    assert trainer.train_dataset is given
    assert given.infinite
    assert trainer.train().global_step == 30
    assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize(("drop_last", "steps"), [(False, 4), (True, 4)])
def test_an_epoch_of_a_constant_length_data_set_is_as_long_as_its_rows(
    make, rows, tokenizer, tmp_path, drop_last, steps
) -> None:
    options = {"packing": True, "max_steps": -1, "num_train_epochs": 1, "dataloader_drop_last": drop_last}
    given = constant(rows, tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch counts more rows than its length tells
        trainer = make(args={**options, "save_strategy": "epoch"}, train_dataset=given)
        assert not given.infinite
        assert trainer.train().global_step == steps
    assert (tmp_path / "out" / f"checkpoint-{steps}" / "model.safetensors").is_file()


def test_each_of_several_constant_length_sets_is_evaluated(make, rows, tokenizer) -> None:
    sets = {name: constant(rows, tokenizer) for name in ("data1", "data2")}
    options = {"packing": True, "max_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    trainer = make(args=options, train_dataset=constant(rows, tokenizer), eval_dataset=sets)
    trainer.train()
    losses = [name for entry in trainer.state.log_history for name in entry if name.endswith("_loss")]
    assert losses[:2] == ["eval_data1_loss", "eval_data2_loss"]


def test_packing_with_max_steps_is_told(make) -> None:
    with pytest.warns(UserWarning, match="`packing=True` .*`max_steps`"):
        make(args={"packing": True})


def test_a_strategy_of_evaluation_needs_no_evaluation_set(make) -> None:
    trainer = make(args={"eval_strategy": "steps", "save_strategy": "steps", "save_steps": 1})
    assert trainer.train().global_step == 2


def test_the_data_are_prepared_the_same_for_a_model_by_name(named, config, rows, tokenizer, ids) -> None:
    args: SFTConfig = config(dataset_text_field="text")
    with pytest.warns(UserWarning, match="You passed a model_id"):
        trainer = SFTTrainer(named, args=args, train_dataset=rows)
    assert ids(trainer.train_dataset) == [tokenizer(text)["input_ids"][:32] for text in rows["text"]]
    assert all(torch.equal(a, b) for a, b in zip(trainer.model.parameters(), tiny_model().parameters(), strict=True))
