"""The arguments of `SFTTrainer`: order, those that moved to `SFTConfig`, tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

from sftkit.testing import tiny_model, tiny_tokenizer
from sftkit_trl import SFTConfig, SFTTrainer


def test_the_arguments_have_the_order_of_trl(config, rows, tokenizer) -> None:
    optimizers = (None, None)
    args = TrainingArguments(output_dir=config().output_dir, report_to="none", use_cpu=True, max_steps=1)
    first = (tiny_model(), args, None, rows, rows, tokenizer, None, None, None, optimizers, None)
    with pytest.warns(FutureWarning):
        trainer = SFTTrainer(*first, LoraConfig(task_type="CAUSAL_LM"), "text", False, None, 16)
    assert isinstance(trainer.model, PeftModel)
    assert (trainer.args.dataset_text_field, trainer.args.packing, trainer.args.max_seq_length) == ("text", False, 16)
    assert trainer.train().global_step == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dataset_text_field", "answer"),
        ("packing", True),
        ("max_seq_length", 16),
        ("num_of_sequences", 4),
        ("chars_per_token", 2.5),
        ("dataset_num_proc", 2),
        ("dataset_batch_size", 3),
        ("neftune_noise_alpha", 5.0),
        ("dataset_kwargs", {"append_concat_token": False}),
        ("eval_packing", False),
    ],
)
def test_a_moved_argument_warns_and_overrides_the_configuration(config, rows, tokenizer, name, value) -> None:
    there = {"dataset_text_field": "text", "packing": name == "eval_packing"}
    arguments = {"args": config(**there), "train_dataset": rows, "tokenizer": tokenizer, name: value}
    with pytest.warns() as warned:
        trainer = SFTTrainer(tiny_model(), **arguments)
    assert any(w.category is FutureWarning and name in str(w.message) for w in warned)
    assert any(f"`{name}` argument" in str(w.message) and w.category is UserWarning for w in warned)
    assert getattr(trainer.args, name) == value


def test_model_init_kwargs_can_be_passed_to_the_trainer(named, config, rows) -> None:
    with pytest.warns(FutureWarning, match="model_init_kwargs"):
        trainer = SFTTrainer(
            named,
            args=config(dataset_text_field="text"),
            train_dataset=rows,
            model_init_kwargs={"torch_dtype": "bfloat16"},
        )
    assert trainer.model.dtype == torch.bfloat16


def test_infinite_warns_that_it_has_no_effect(make) -> None:
    with pytest.warns(UserWarning, match="`infinite` argument is deprecated"):
        make(infinite=True)


def test_all_fields_of_plain_training_arguments_are_used(named, rows, tmp_path) -> None:
    options = {"output_dir": str(tmp_path), "hub_token": "not a token", "max_steps": 3, "report_to": "none"}
    args = TrainingArguments(**options, use_cpu=True, per_device_train_batch_size=2, learning_rate=1e-3)
    with pytest.warns(FutureWarning):
        trainer = SFTTrainer(named, args=args, train_dataset=rows, dataset_text_field="text", max_seq_length=32)
    assert isinstance(trainer.args, SFTConfig)
    assert trainer.args.hub_token == args.hub_token
    assert (trainer.args.max_steps, trainer.args.learning_rate) == (3, 1e-3)
    assert trainer.train().global_step == 3


def test_warnings_point_at_the_line_of_the_script(make, tokenizer) -> None:
    tokenizer.padding_side = "left"
    with pytest.warns(UserWarning, match="max_seq_length") as warned:
        make(args={"max_seq_length": None, "eval_strategy": "epoch"})
    assert {Path(warning.filename).name for warning in warned} == {"conftest.py"}  # which makes the trainer
    assert len(warned) == 3


def test_without_arguments_the_output_directory_is_tmp_trainer(named, rows, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="output_dir=tmp_trainer"):
        trainer = SFTTrainer(named, train_dataset=rows)
    assert trainer.args.output_dir == "tmp_trainer"


def test_padding_on_the_left_warns(make, tokenizer) -> None:
    tokenizer.padding_side = "left"
    with pytest.warns(UserWarning, match="`padding_side` not equal to `right`"):
        make()


def test_the_tokenizer_defaults_to_the_models_own(make, named, config, rows, tokenizer) -> None:
    assert make().tokenizer is tokenizer
    assert make(tokenizer=None, processing_class=tokenizer).tokenizer is tokenizer
    by_name = SFTTrainer(named, args=config(dataset_text_field="text"), train_dataset=rows)
    assert by_name.tokenizer.get_vocab() == tokenizer.get_vocab()
    loaded = AutoModelForCausalLM.from_pretrained(named)
    of_loaded = SFTTrainer(loaded, args=config(dataset_text_field="text"), train_dataset=rows)
    assert of_loaded.tokenizer.chat_template == tokenizer.chat_template


def test_the_tokenizer_can_be_replaced(make, tmp_path) -> None:
    trainer = make()
    other = tiny_tokenizer(chat_template="other")
    trainer.tokenizer = other
    assert trainer.processing_class is other
    trainer.save_model(str(tmp_path / "saved"))
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template == "other"


def test_a_models_tokenizer_without_padding_pads_with_eos(config, rows, tmp_path) -> None:
    tiny_model().save_pretrained(tmp_path / "m")
    tiny_tokenizer(pad=False).save_pretrained(tmp_path / "m")
    trainer = SFTTrainer(str(tmp_path / "m"), args=config(dataset_text_field="text"), train_dataset=rows)
    assert trainer.tokenizer.pad_token == trainer.tokenizer.eos_token


@pytest.mark.parametrize("special", [True, False])
def test_truncation_on_the_left_keeps_the_end_of_texts(make, rows, tokenizer, ids, special) -> None:
    tokenizer.truncation_side = "left"
    trainer = make(args={"max_seq_length": 8, "dataset_kwargs": {"add_special_tokens": special}}, eval_dataset=rows)
    whole = tokenizer(list(rows["text"]), add_special_tokens=False)["input_ids"]
    expected = [[tokenizer.bos_token_id, *tokens[-7:]] if special else tokens[-8:] for tokens in whole]
    assert ids(trainer.train_dataset) == ids(trainer.eval_dataset) == expected
    assert trainer.train().global_step == 2


def test_truncation_on_the_left_keeps_the_end_of_conversations(make, conversations, tokenizer, ids) -> None:
    tokenizer.truncation_side = "left"
    trainer = make(args={"max_seq_length": 8}, train_dataset=conversations)
    text = tokenizer.apply_chat_template(conversations[3]["messages"], tokenize=False)
    assert ids(trainer.train_dataset)[3] == tokenizer(text, add_special_tokens=False)["input_ids"][-8:]


def test_truncation_on_the_left_keeps_other_columns(make, rows, questions, tokenizer) -> None:
    tokenizer.truncation_side = "left"
    options = {"max_seq_length": 8, "remove_unused_columns": False}
    trainer = make(args=options, train_dataset=rows, formatting_func=questions)
    assert {"input_ids", "attention_mask", "answer"} <= set(trainer.train_dataset.column_names)
    assert trainer.train_dataset["answer"] == rows["answer"]


def test_truncation_on_the_left_without_texts_is_an_error(make, rows, tokenizer) -> None:
    tokenizer.truncation_side = "left"
    with pytest.raises(ValueError, match=r"truncation_side='left' needs the column 'text'.*question"):
        make(args={}, train_dataset=rows.remove_columns("text"))


def test_packed_texts_are_not_truncated_on_any_side(make, tokenizer, ids) -> None:
    packed = ids(make(args={"packing": True}).train_dataset)
    tokenizer.truncation_side = "left"
    assert ids(make(args={"packing": True}).train_dataset) == packed


def test_the_trainers_arguments_are_the_scripts_completed(config, rows, tokenizer) -> None:
    args = config(max_seq_length=None, eval_strategy="steps", neftune_noise_alpha=5.0)
    with pytest.warns(UserWarning, match="Nothing is evaluated"):
        trainer = SFTTrainer(
            tiny_model(), args=args, train_dataset=rows, tokenizer=tokenizer, dataset_text_field="text"
        )
    assert trainer.args is args
    assert (args.max_seq_length, args.dataset_text_field, args.eval_strategy) == (1024, "text", "no")
    assert args.neftune_noise_alpha == 5.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="tests a machine without a GPU")
def test_use_liger_kernel_is_use_liger(config, rows, tokenizer) -> None:
    args = config(use_liger_kernel=True)
    with pytest.raises(ValueError, match=r"liger.*needs a GPU"):
        SFTTrainer(tiny_model(), args=args, train_dataset=rows, tokenizer=tokenizer)
    assert (args.use_liger, args.use_liger_kernel) == (True, False)
