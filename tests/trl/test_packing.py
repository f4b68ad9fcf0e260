"""Packed rows and `ConstantLengthDataset`: what they hold, and how documents are kept apart."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import Trainer

from sftkit.testing import tiny_model
from sftkit_trl import ConstantLengthDataset, SFTTrainer


@pytest.mark.parametrize("appended", [True, False])
@pytest.mark.parametrize("special", [True, False])
def test_packed_rows_equal_those_of_constant_length_dataset(make, rows, tokenizer, ids, appended, special) -> None:
    options = {"append_concat_token": appended, "add_special_tokens": special}
    trainer = make(args={"packing": True, "max_seq_length": 16, "dataset_kwargs": options})
    reference = ConstantLengthDataset(tokenizer, rows, "text", seq_length=16, shuffle=False, **options)
    assert ids(trainer.train_dataset) == ids(reference)


def test_packing_calls_the_formatting_function_with_one_row(make, rows, question, tokenizer, ids) -> None:
    trainer = make(args={"packing": True, "max_seq_length": 16}, formatting_func=question)
    reference = ConstantLengthDataset(tokenizer, rows, formatting_func=question, seq_length=16, shuffle=False)
    assert ids(trainer.train_dataset) == ids(reference)


def test_with_packing_the_function_overrides_the_column(make, rows, question, tokenizer, ids) -> None:
    options = {"packing": True, "max_seq_length": 16, "dataset_text_field": "text"}
    trainer = make(args=options, formatting_func=question)
    reference = ConstantLengthDataset(tokenizer, rows, formatting_func=question, seq_length=16, shuffle=False)
    assert ids(trainer.train_dataset) == ids(reference)


def test_packed_conversations_have_only_the_templates_special_tokens(make, conversations, tokenizer, ids) -> None:
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


def test_packed_batches_have_restarting_positions_and_no_mask(make) -> None:
    trainer = make(args={"packing": True})
    batch = next(iter(trainer.get_train_dataloader()))
    assert "attention_mask" not in batch
    assert (batch["position_ids"] == 0).sum() > len(batch["input_ids"])


def test_too_little_data_for_one_packed_row_is_an_error(make) -> None:
    with pytest.raises(ValueError, match="no full row"):
        make(args={"packing": True, "max_seq_length": 1024})


def test_packing_unknown_columns_is_an_error(make, rows) -> None:
    unknown = rows.remove_columns("text").rename_columns({"question": "first", "answer": "second"})
    with pytest.raises(ValueError, match="first"):
        make(args={"packing": True}, train_dataset=unknown)


@pytest.mark.parametrize("eval_packing", [None, True, False])
def test_eval_packing_decides_whether_evaluation_sets_are_packed(make, rows, ids, eval_packing) -> None:
    trainer = make(args={"packing": True, "eval_packing": eval_packing}, eval_dataset=rows)
    if eval_packing is False:
        assert len(trainer.eval_dataset) == len(rows)
    else:
        assert ids(trainer.eval_dataset) == ids(trainer.train_dataset)


def test_packing_with_max_steps_warns(make) -> None:
    with pytest.warns(UserWarning, match="`packing=True` .*`max_steps`"):
        make(args={"packing": True})


def constant(rows: Dataset, tokenizer: Any, **options: Any) -> ConstantLengthDataset:
    return ConstantLengthDataset(tokenizer, rows, "text", seq_length=16, num_of_sequences=16, **options)


def test_a_constant_length_data_set_is_repeated_until_max_steps(make, rows, tokenizer) -> None:
    train, held_out = constant(rows, tokenizer), constant(rows, tokenizer)
    trainer = make(args={"packing": True, "max_steps": 30}, train_dataset=train, eval_dataset=held_out)
    assert trainer.train_dataset.infinite
    assert trainer.train().global_step == 30
    assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize(("max_steps", "infinite"), [(3, False), (-1, True)])
def test_the_scripts_own_constant_length_data_set_is_not_changed(make, rows, tokenizer, max_steps, infinite) -> None:
    data = constant(rows, tokenizer, infinite=infinite)
    trainer = make(args={"packing": True, "max_steps": max_steps}, train_dataset=data)
    assert data.infinite is infinite
    assert trainer.train_dataset.infinite is not infinite


@pytest.mark.parametrize(("drop_last", "steps"), [(False, 4), (True, 4)])
def test_an_epoch_of_a_constant_length_data_set_ends_with_its_rows(
    make, rows, tokenizer, tmp_path, drop_last, steps
) -> None:
    options = {"packing": True, "max_steps": -1, "num_train_epochs": 1, "dataloader_drop_last": drop_last}
    data = constant(rows, tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch counts more rows than the length says
        trainer = make(args={**options, "save_strategy": "epoch"}, train_dataset=data)
        assert not trainer.train_dataset.infinite
        assert trainer.train().global_step == steps
    assert (tmp_path / "out" / f"checkpoint-{steps}" / "model.safetensors").is_file()


def test_each_of_several_constant_length_sets_is_evaluated(make, rows, tokenizer) -> None:
    sets = {name: constant(rows, tokenizer) for name in ("data1", "data2")}
    options = {"packing": True, "max_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    trainer = make(args=options, train_dataset=constant(rows, tokenizer), eval_dataset=sets)
    trainer.train()
    losses = [name for entry in trainer.state.log_history for name in entry if name.endswith("_loss")]
    assert losses[:2] == ["eval_data1_loss", "eval_data2_loss"]


@pytest.mark.parametrize(
    "architecture", ["bloom", *(pytest.param(name, marks=pytest.mark.slow) for name in ("opt", "gpt_neox"))]
)
def test_packed_rows_train_any_architecture(make, rows, architecture) -> None:
    more = {"ffn_dim": 64, "word_embed_proj_dim": 32} if architecture == "opt" else {}
    model = tiny_model(architecture, **more)
    trainer = make(model, args={"packing": True}, eval_dataset=rows)
    assert trainer.train().training_loss > 0
    assert isinstance(trainer, Trainer)
    assert trainer.evaluate()["eval_loss"] > 0


def test_a_model_that_cannot_isolate_documents_warns_and_trains(make) -> None:
    with pytest.warns(UserWarning, match="As in TRL, the documents of a packed row see each other"):
        trainer = make(tiny_model("mamba"), args={"packing": True})
    (batch,) = [*trainer.get_train_dataloader()][:1]
    assert "position_ids" not in batch
    assert batch["attention_mask"].all()
    assert trainer.train().global_step == 2


def test_a_packed_stream_trains_a_model_that_cannot_isolate_documents(make, rows, question) -> None:
    data = IterableDataset.from_generator(lambda: iter(rows.to_list() * 6))
    with pytest.warns(UserWarning, match="As in TRL, the documents of a packed row see each other"):
        trainer = make(tiny_model("mamba"), args={"packing": True}, train_dataset=data, formatting_func=question)
    assert trainer.train().global_step == 2


def test_joined_documents_have_the_models_own_loss(make, rows) -> None:
    model = tiny_model("mamba")
    trainer = make(model, args={"packing": True}, eval_dataset=rows)
    (batch,) = trainer.get_eval_dataloader()
    with torch.no_grad():
        expected = model.eval()(**batch).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_model_that_needs_a_mask_is_isolated_without_a_change_to_it(make, rows) -> None:
    model = tiny_model("opt")
    hooks = [len(part._forward_pre_hooks) for part in model.modules()]
    trainer = make(model, args={"packing": True, "eval_strategy": "steps", "eval_steps": 1}, eval_dataset=rows)
    trainer.train()
    assert [len(part._forward_pre_hooks) for part in model.modules()] == hooks


def test_packed_documents_have_the_same_loss_during_and_after_training(config, rows, tokenizer) -> None:
    model = tiny_model("opt")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)  # large weights show what a document attends to
    args = config(packing=True, dataset_text_field="text", eval_strategy="steps", eval_steps=1, learning_rate=1e-12)
    trainer = SFTTrainer(model, args=args, train_dataset=rows, eval_dataset=rows, tokenizer=tokenizer)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    inside = next(entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(inside, rel=1e-5) == pytest.approx(before, rel=1e-5)


@pytest.mark.parametrize("use_cache", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_packed_documents_are_isolated_if_a_subclass_computes_the_loss(config, rows, tokenizer, use_cache) -> None:
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
