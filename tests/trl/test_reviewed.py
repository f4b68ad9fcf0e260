"""What a review of the facade has found, each mended."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import default_data_collator

from sftkit.testing import tiny_model, tiny_tokenizer
from sftkit_trl import DataCollatorForCompletionOnlyLM, SFTConfig, SFTTrainer, TrlParser
from sftkit_trl.collators import WithRowLengths


def test_packed_documents_have_one_loss_inside_of_training_and_outside(config, rows, tokenizer):
    model = tiny_model("opt")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)  # so that it shows what a document sees
    args = config(packing=True, dataset_text_field="text", eval_strategy="steps", eval_steps=1, learning_rate=1e-12)
    trainer = SFTTrainer(model, args=args, train_dataset=rows, eval_dataset=rows, tokenizer=tokenizer)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    inside = next(entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(inside, rel=1e-5) == pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize("use_cache", [True, False])
def test_packed_documents_stay_apart_where_a_subclass_computes_the_loss(config, rows, tokenizer, use_cache):
    class Own(SFTTrainer):
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
            outputs = model(**inputs)
            return (outputs.loss, outputs) if return_outputs else outputs.loss

    losses = []
    for kind in (SFTTrainer, Own):
        model = tiny_model()
        model.config.use_cache = use_cache
        trainer = kind(
            model, args=config(packing=True, max_steps=1), train_dataset=rows, eval_dataset=rows, tokenizer=tokenizer
        )
        trainer.train()
        losses += [trainer.state.log_history[0]["loss"]]
        assert model.config.use_cache is use_cache
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_rows_laid_into_one_are_evaluated_row_by_row(rows, tokenizer):
    collator = DataCollatorForCompletionOnlyLM("### A:", tokenizer=tokenizer, padding_free=True)
    examples = [{"input_ids": tokenizer(text)["input_ids"]} for text in rows["text"][:3]]
    made = WithRowLengths(collator)(examples)
    assert made["row_lengths"].tolist() == [len(example["input_ids"]) for example in examples]


def test_one_row_with_the_template_is_enough_to_train(config, rows, tokenizer):
    many = Dataset.from_dict({"text": ["nothing to see here"] * 150 + [rows[0]["text"]]})
    collator = DataCollatorForCompletionOnlyLM("### A:", tokenizer=tokenizer)
    args = config(dataset_text_field="text", max_seq_length=64, max_steps=1)
    trainer = SFTTrainer(tiny_model(), args=args, train_dataset=many, tokenizer=tokenizer, data_collator=collator)
    with pytest.warns(UserWarning, match="Could not find response key"):
        trainer.train()


@pytest.mark.parametrize(("given", "steps"), [({"warmup_steps": 100}, 100), ({}, 0.1)])
def test_warm_up_steps_go_before_the_ratio(given, steps):
    assert SFTConfig(output_dir="x", warmup_ratio=0.1, **given).warmup_steps == steps


def test_a_warm_up_of_all_steps_is_one():
    assert SFTConfig(output_dir="x", warmup_ratio=1.0).get_warmup_steps(50) == 50


def test_a_trainer_leaves_its_arguments_as_they_were(config, rows, tokenizer):
    class Prepares(SFTTrainer):
        def _prepare_dataset(self, dataset: Any, *arguments: Any, **options: Any) -> Any:
            return super()._prepare_dataset(dataset, *arguments, **options)

    args = config(dataset_text_field="text", eval_strategy="steps", max_seq_length=None)
    before = copy.deepcopy(args.to_dict())
    trainer = Prepares(tiny_model(), args=args, train_dataset=rows, tokenizer=tokenizer)
    assert args.to_dict() == before
    assert trainer.args.max_seq_length == 1024


def test_a_misspelt_dataset_kwarg_is_an_error(config, rows, tokenizer):
    with pytest.raises(TypeError, match="add_special_token; known are add_special_tokens"):
        SFTTrainer(
            tiny_model(),
            args=config(dataset_kwargs={"add_special_token": False}),
            train_dataset=rows,
            tokenizer=tokenizer,
        )


def test_data_sets_that_only_partly_take_the_chat_template_are_refused(config, rows, tokenizer):
    pairs = Dataset.from_dict({"prompt": ["a?"], "completion": ["b"]})
    with pytest.raises(ValueError, match="give all data sets the same columns"):
        SFTTrainer(tiny_model(), args=config(), train_dataset=rows, eval_dataset=pairs, tokenizer=tokenizer)


def test_a_loss_of_2024_may_come_from_a_mixin(config, rows, tokenizer):
    class Mixin:
        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
            return super().compute_loss(model, inputs, return_outputs)

    class Mixed(Mixin, SFTTrainer):
        pass

    trainer = Mixed(tiny_model(), args=config(dataset_text_field="text"), train_dataset=rows, tokenizer=tokenizer)
    assert trainer.train().training_loss > 0


def test_a_collator_of_ones_own_gets_the_labels_of_packed_rows(config, rows, tokenizer):
    trainer = SFTTrainer(
        tiny_model(),
        args=config(packing=True),
        train_dataset=rows,
        tokenizer=tokenizer,
        data_collator=default_data_collator,
    )
    assert trainer.train().training_loss > 0


def test_the_file_of_defaults_may_be_named_in_one_word(tmp_path):
    (tmp_path / "defaults.yaml").write_text("learning_rate: 2.0e-4\n")
    (args,) = TrlParser(SFTConfig).parse_args_and_config([f"--config={tmp_path / 'defaults.yaml'}", "--output_dir=x"])
    assert args.learning_rate == 2e-4


def test_a_tokenizer_that_cannot_be_followed_is_an_error(config, rows):
    tokenizer = tiny_tokenizer()
    tokenizer.truncation_side = "left"
    with pytest.raises(ValueError, match="truncation_side='left'"):
        SFTTrainer(tiny_model(), args=config(), train_dataset=rows, tokenizer=tokenizer)


def test_a_collator_without_labels_is_named(config, rows, tokenizer):
    def collate(examples: list[Any]) -> Any:
        return {"input_ids": torch.tensor([example["input_ids"][:4] for example in examples])}

    trainer = SFTTrainer(tiny_model(), args=config(), train_dataset=rows, tokenizer=tokenizer, data_collator=collate)
    with pytest.raises(ValueError, match="the collator gives no labels, only input_ids"):
        trainer.train()
