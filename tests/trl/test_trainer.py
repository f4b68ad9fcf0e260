"""The facade's trainer: its arguments, its loss, and what it tells, saves and resumes."""

from __future__ import annotations

import warnings
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from datasets import Dataset
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from sftkit.testing import tiny_model, tiny_tokenizer
from sftkit_trl import RichProgressCallback, SFTConfig, SFTTrainer

SAVES = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def plain_trainer(tmp_path: Any, rows: Dataset, tokenizer: Any, **options: Any) -> Trainer:
    encoded = rows.map(lambda row: tokenizer(row["text"]), remove_columns=rows.column_names)
    args = {"output_dir": str(tmp_path / "plain"), "report_to": "none", "use_cpu": True, "save_strategy": "no"}
    return Trainer(
        tiny_model(),
        TrainingArguments(**args, max_steps=3, logging_steps=1, per_device_train_batch_size=2, **options),
        DataCollatorForLanguageModeling(tokenizer, mlm=False),
        encoded,
        encoded,
    )


@pytest.mark.parametrize("options", [{}, {"gradient_accumulation_steps": 2}, {"label_smoothing_factor": 0.1}], ids=str)
def test_three_steps_are_those_of_a_plain_trainer(make, rows, tokenizer, tmp_path, options) -> None:
    plain = plain_trainer(tmp_path, rows, tokenizer, **options)
    trainer = make(args={"max_steps": 3, "max_seq_length": 64, **options})
    plain.train()
    trainer.train()
    assert losses(trainer) == pytest.approx(losses(plain), rel=2e-5)
    for mine, theirs in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=2e-5)


def test_the_evaluation_loss_is_the_models_own(make, rows, tokenizer) -> None:
    trainer = make(args={"max_seq_length": 64, "per_device_eval_batch_size": 2}, eval_dataset=rows)
    batch = DataCollatorForLanguageModeling(tokenizer, mlm=False)([tokenizer(text) for text in rows["text"]])
    with torch.no_grad():
        expected = tiny_model()(**batch).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_evaluation_falls_with_training(make, rows) -> None:
    trainer = make(args={"learning_rate": 1e-2, "max_steps": 8}, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    assert trainer.train().metrics["train_loss"] < before
    assert trainer.evaluate()["eval_loss"] < before


def test_a_loaded_model_is_trained_itself(make) -> None:
    model = tiny_model()
    before = weights(model)
    trainer = make(model)
    trainer.train()
    assert trainer.model is model
    assert not same(before, weights(model))


def test_several_trainers_train_one_model_in_turn(make) -> None:
    model = tiny_model()
    for options in ({}, {"packing": True}, {"neftune_noise_alpha": 5}, {"gradient_checkpointing": True}, {}):
        assert make(model, args=options).train().global_step == 2
    ids = torch.tensor([[1, 2, 3]])
    out = model(ids, labels=ids)
    assert (out.logits.shape, out.loss.ndim) == ((1, 3, 320), 0)  # it is a model as before


def test_model_init_makes_a_new_model_for_each_training(config, rows, tokenizer) -> None:
    args = config(dataset_text_field="text")
    trainer = SFTTrainer(model_init=lambda: tiny_model(), args=args, train_dataset=rows, tokenizer=tokenizer)
    assert trainer.train().training_loss == trainer.train().training_loss


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
def test_an_argument_that_moved_to_the_configuration_warns_and_goes_before_it(
    config, rows, tokenizer, name, value
) -> None:
    there = {"dataset_text_field": "text", "packing": name == "eval_packing"}
    given = {"args": config(**there), "train_dataset": rows, "tokenizer": tokenizer, name: value}
    with pytest.warns() as told:
        trainer = SFTTrainer(tiny_model(), **given)
    assert any(w.category is FutureWarning and name in str(w.message) for w in told)
    assert any(f"`{name}` argument" in str(w.message) and w.category is UserWarning for w in told)
    assert getattr(trainer.args, name) == value


def test_model_init_kwargs_as_an_argument_loads_the_model_so(named, config, rows) -> None:
    with pytest.warns(FutureWarning, match="model_init_kwargs"):
        trainer = SFTTrainer(
            named,
            args=config(dataset_text_field="text"),
            train_dataset=rows,
            model_init_kwargs={"torch_dtype": "bfloat16"},
        )
    assert trainer.model.dtype == torch.bfloat16


def test_infinite_is_told_to_be_of_no_use(make) -> None:
    with pytest.warns(UserWarning, match="`infinite` argument is deprecated"):
        make(infinite=True)


def test_plain_training_arguments_are_taken_with_all_they_say(named, rows, tmp_path) -> None:
    options = {"output_dir": str(tmp_path), "hub_token": "not a token", "max_steps": 3, "report_to": "none"}
    args = TrainingArguments(**options, use_cpu=True, per_device_train_batch_size=2, learning_rate=1e-3)
    with pytest.warns(FutureWarning):
        trainer = SFTTrainer(named, args=args, train_dataset=rows, dataset_text_field="text", max_seq_length=32)
    assert isinstance(trainer.args, SFTConfig)
    assert trainer.args.hub_token == args.hub_token
    assert (trainer.args.max_steps, trainer.args.learning_rate) == (3, 1e-3)
    assert trainer.train().global_step == 3


def test_without_arguments_it_goes_to_tmp_trainer_and_says_so(named, rows, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="output_dir=tmp_trainer"):
        trainer = SFTTrainer(named, train_dataset=rows)
    assert trainer.args.output_dir == "tmp_trainer"


def test_padding_on_the_left_is_told(make, tokenizer) -> None:
    tokenizer.padding_side = "left"
    with pytest.warns(UserWarning, match="`padding_side` not equal to `right`"):
        make()


def test_the_tokenizer_is_an_attribute_and_the_models_own_by_default(make, named, config, rows, tokenizer) -> None:
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


def test_a_tokenizer_without_padding_that_comes_with_the_model_pads_with_eos(config, rows, tmp_path) -> None:
    tiny_model().save_pretrained(tmp_path / "m")
    tiny_tokenizer(pad=False).save_pretrained(tmp_path / "m")
    trainer = SFTTrainer(str(tmp_path / "m"), args=config(dataset_text_field="text"), train_dataset=rows)
    assert trainer.tokenizer.pad_token == trainer.tokenizer.eos_token


@pytest.mark.parametrize("options", [{}, {"packing": True}, {"neftune_noise_alpha": 5.0}], ids=str)
def test_a_resumed_run_ends_as_an_uninterrupted_one(make, tmp_path, options) -> None:
    whole = make(args={**SAVES, **options})
    whole.train()
    (tmp_path / "out" / "checkpoint-4").rename(tmp_path / "away")
    resumed = make(tiny_model(seed=1), args={**SAVES, **options})
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4
    assert same(weights(whole.model), weights(resumed.model))


def test_a_checkpoint_is_resumed_by_its_path(make, tmp_path) -> None:
    make(args=SAVES).train()
    resumed = make(args={**SAVES, "max_steps": 6})
    assert resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4")).global_step == 6


def test_the_best_checkpoint_is_loaded_at_the_end_and_training_may_stop_early(make, rows) -> None:
    options = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 6}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False}
    stop = EarlyStoppingCallback(early_stopping_patience=2)
    trainer = make(args={**options, **best, "learning_rate": 1.0}, eval_dataset=rows, callbacks=[stop])
    trainer.train()
    assert trainer.state.global_step < 6
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric)


def test_what_is_saved_is_a_model_with_its_tokenizer_and_a_card(make, tmp_path) -> None:
    trainer = make()
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert same(weights(trainer.model), weights(loaded))
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").get_vocab() == trainer.tokenizer.get_vocab()
    card = (tmp_path / "saved" / "README.md").read_text()
    assert "- trl" in card
    assert "- sft" in card


def test_checkpoints_hold_the_model(make, tmp_path) -> None:
    make(args={**SAVES, "max_steps": 2}).train()
    assert (tmp_path / "out" / "checkpoint-2" / "model.safetensors").is_file()


def test_the_model_has_the_trainers_tags(make) -> None:
    trainer = make()
    assert trainer.model.model_tags == trainer._tag_names == ["trl", "sft"]


def test_a_card_has_the_tags_asked_for_and_its_own(make, tmp_path) -> None:
    trainer = make()
    trainer.train()
    asked = {"language": "en", "license": "mit", "finetuned_from": "base", "dataset": "d", "dataset_tags": "t"}
    trainer.create_model_card(tags="mine", model_name="name", **asked)
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(f"- {tag}" in card for tag in ("mine", "trl", "sft"))


def test_it_is_pushed_with_its_tags(make, tmp_path) -> None:
    trainer = make(args={"hub_model_id": "me/mine"})
    trainer.train()
    made = mock.Mock(repo_id="me/mine")
    with (
        mock.patch.object(HfApi, "create_repo", return_value=made),
        mock.patch.object(HfApi, "upload_folder") as upload,
    ):
        trainer.push_to_hub(commit_message="done", tags=["further"])
    assert upload.call_args.kwargs["commit_message"] == "done"
    assert "- further\n- trl\n- sft" in (tmp_path / "out" / "README.md").read_text()


def test_metrics_are_computed_from_the_models_logits(make, rows, tokenizer) -> None:
    def accuracy(prediction: Any) -> dict[str, float]:
        guesses, labels = prediction.predictions[:, :-1], prediction.label_ids[:, 1:]
        return {"accuracy": float((guesses == labels)[labels != -100].mean())}

    def best(logits: Any, labels: Any) -> Any:
        return logits.argmax(-1)

    options = {"max_seq_length": 64, "per_device_eval_batch_size": 3, "learning_rate": 1e-2, "max_steps": 8}
    trainer = make(args=options, eval_dataset=rows, compute_metrics=accuracy, preprocess_logits_for_metrics=best)
    trainer.train()
    hits = total = 0
    for text in rows["text"]:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            guesses = trainer.model(ids).logits.argmax(-1)
        hits, total = hits + int((guesses[:, :-1] == ids[:, 1:]).sum()), total + ids.shape[1] - 1
    assert hits > 0
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(hits / total)


def test_metrics_get_all_logits_and_labels(make, rows, tokenizer) -> None:
    seen: dict[str, Any] = {}

    def metrics(prediction: Any) -> dict[str, float]:
        seen["logits"], seen["labels"] = prediction
        return {}

    make(args={"max_seq_length": 64}, eval_dataset=rows, compute_metrics=metrics).evaluate()
    batch = DataCollatorForLanguageModeling(tokenizer, mlm=False)([tokenizer(text) for text in rows["text"]])
    with torch.no_grad():
        logits = tiny_model()(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    kept = batch["attention_mask"].bool().numpy()
    assert seen["logits"].shape == (*kept.shape, 320)
    np.testing.assert_allclose(seen["logits"][kept], logits.numpy()[kept], atol=1e-5)
    np.testing.assert_array_equal(seen["labels"][:, 1:][kept[:, 1:]], batch["input_ids"].numpy()[:, 1:][kept[:, 1:]])


def test_predictions_are_the_logits(make, rows) -> None:
    trainer = make(args={"max_seq_length": 64}, eval_dataset=rows)
    predicted = trainer.predict(trainer.eval_dataset)
    assert predicted.predictions.shape[0] == predicted.label_ids.shape[0] == len(rows)
    assert predicted.predictions.shape[2] == 320
    assert predicted.metrics["test_loss"] == pytest.approx(trainer.evaluate()["eval_loss"])


class Watcher(TrainerCallback):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **given: Any) -> None:
        self.seen.append(("step", state.global_step))
        self.given = {"model": model, **given}

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **given: Any) -> None:
        self.seen.append(("evaluation", metrics["eval_loss"]))


def test_callbacks_get_steps_metrics_the_model_and_the_tokenizer(make, rows) -> None:
    watcher = Watcher()
    options = {"eval_strategy": "steps", "eval_steps": 2}
    trainer = make(args=options, eval_dataset=rows, callbacks=[watcher])
    trainer.train()
    assert [what for what, _ in watcher.seen] == ["step", "step", "evaluation"]
    assert watcher.given["model"] is trainer.model
    assert watcher.given["tokenizer"] is trainer.tokenizer
    assert {"optimizer", "lr_scheduler", "train_dataloader"} <= watcher.given.keys()


def test_a_callback_may_predict_and_generate_while_training(make, rows) -> None:
    class Sampler(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **given: Any) -> None:
            made = model.generate(torch.tensor([[5, 6]]), max_new_tokens=2, min_new_tokens=2, do_sample=False)
            lengths.append(made.shape[1])
            rows_predicted.append(len(trainer.predict(trainer.eval_dataset).predictions))

    lengths: list[int] = []
    rows_predicted: list[int] = []
    trainer = make(args={"eval_strategy": "steps", "eval_steps": 1}, eval_dataset=rows)
    trainer.add_callback(Sampler)
    trainer.train()
    assert (lengths, rows_predicted) == ([4, 4], [7, 7])


def test_the_rich_progress_takes_the_place_of_the_trainers(make) -> None:
    trainer = make(callbacks=[RichProgressCallback])
    names = {type(callback).__name__ for callback in trainer.callback_handler.callbacks}
    assert names.isdisjoint({"ProgressCallback", "PrinterCallback"})
    assert trainer.train().global_step == 2


def test_optimizers_of_ones_own_are_used(make) -> None:
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    before = weights(model)
    make(model, optimizers=(optimizer, schedule)).train()
    assert same(before, weights(model))


def test_lengths_are_grouped_where_asked_for(make) -> None:
    trainer = make(args={"group_by_length": True})
    assert type(trainer._get_train_sampler(trainer.train_dataset)).__name__ == "LengthGroupedSampler"
    assert trainer.train().global_step == 2


def test_bf16_on_a_cpu(make) -> None:
    trainer = make(args={"bf16": True})
    assert trainer.train().training_loss > 0
    assert trainer.model.dtype == torch.float32


def test_scripts_keep_their_own_configuration(config, rows, tokenizer) -> None:
    args = config(dataset_text_field="text", eval_strategy="steps", neftune_noise_alpha=5.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SFTTrainer(tiny_model(), args=args, train_dataset=rows, tokenizer=tokenizer)
    assert (args.eval_strategy.value, args.neftune_noise_alpha) == ("steps", 5.0)


def test_the_metrics_of_a_training_can_be_logged_and_saved(make, tmp_path) -> None:
    trainer = make()
    metrics = trainer.train().metrics
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    trainer.save_state()
    assert {"train_loss", "train_runtime", "train_samples_per_second", "epoch"} <= metrics.keys()
    assert (tmp_path / "out" / "train_results.json").is_file()
    assert (tmp_path / "out" / "trainer_state.json").is_file()
