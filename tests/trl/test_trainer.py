"""Training and evaluation: losses, metrics, callbacks and optimizers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorForLanguageModeling, Trainer, TrainerCallback, TrainingArguments

from sftkit.testing import tiny_model
from sftkit.training.order import Grouped
from sftkit_trl import RichProgressCallback


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


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
def test_three_steps_equal_those_of_transformers_trainer(make, rows, tokenizer, tmp_path, options) -> None:
    options = {**options, "train_sampling_strategy": "sequential"}  # sftkit shuffles in another way
    plain = plain_trainer(tmp_path, rows, tokenizer, **options)
    trainer = make(args={"max_steps": 3, "max_seq_length": 64, **options})
    plain.train()
    trainer.train()
    assert losses(trainer) == pytest.approx(losses(plain), rel=2e-5)
    for mine, theirs in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=2e-5)


def test_the_evaluation_loss_equals_the_models_own(make, rows, tokenizer) -> None:
    trainer = make(args={"max_seq_length": 64, "per_device_eval_batch_size": 2}, eval_dataset=rows)
    batch = DataCollatorForLanguageModeling(tokenizer, mlm=False)([tokenizer(text) for text in rows["text"]])
    with torch.no_grad():
        expected = tiny_model()(**batch).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_training_lowers_the_evaluation_loss(make, rows) -> None:
    trainer = make(args={"learning_rate": 1e-2, "max_steps": 8}, eval_dataset=rows)
    before = trainer.evaluate()["eval_loss"]
    assert trainer.train().metrics["train_loss"] < before
    assert trainer.evaluate()["eval_loss"] < before


@pytest.mark.parametrize(("steps", "expected"), [(1, 4), (2, 2)])
def test_an_epoch_has_one_step_per_accumulated_batch(make, steps, expected) -> None:
    trainer = make(args={"max_steps": -1, "num_train_epochs": 1, "gradient_accumulation_steps": steps})
    assert trainer.train().global_step == expected


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


def test_compute_metrics_receives_all_logits_and_labels(make, rows, tokenizer) -> None:
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


def test_compute_metrics_can_receive_the_inputs(make, rows, tokenizer) -> None:
    def metrics(prediction: Any) -> dict[str, Any]:
        return {"first": int(prediction.inputs[0][0])}

    options = {"include_inputs_for_metrics": True, "eval_accumulation_steps": 1}
    trainer = make(args=options, eval_dataset=rows, compute_metrics=metrics)
    assert trainer.evaluate()["eval_first"] == tokenizer.bos_token_id


def test_predictions_are_the_logits(make, rows) -> None:
    trainer = make(args={"max_seq_length": 64}, eval_dataset=rows)
    predicted = trainer.predict(trainer.eval_dataset)
    assert predicted.predictions.shape[0] == predicted.label_ids.shape[0] == len(rows)
    assert predicted.predictions.shape[2] == 320
    assert predicted.metrics["test_loss"] == pytest.approx(trainer.evaluate()["eval_loss"])


class Watcher(TrainerCallback):
    """Notes the events and what comes with them."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **objects: Any) -> None:
        self.seen.append(("step", state.global_step))
        self.objects = {"model": model, **objects}

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **objects: Any) -> None:
        self.seen.append(("evaluation", metrics["eval_loss"]))


def test_callbacks_receive_steps_metrics_model_and_tokenizer(make, rows) -> None:
    watcher = Watcher()
    options = {"eval_strategy": "steps", "eval_steps": 2}
    trainer = make(args=options, eval_dataset=rows, callbacks=[watcher])
    trainer.train()
    assert [what for what, _ in watcher.seen] == ["step", "step", "evaluation"]
    assert watcher.objects["model"] is trainer.model
    assert watcher.objects["tokenizer"] is trainer.tokenizer
    assert {"optimizer", "lr_scheduler", "train_dataloader"} <= watcher.objects.keys()


def test_a_callback_may_predict_and_generate_while_training(make, rows) -> None:
    class Sampler(TrainerCallback):
        def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **objects: Any) -> None:
            made = model.generate(torch.tensor([[5, 6]]), max_new_tokens=2, min_new_tokens=2, do_sample=False)
            lengths.append(made.shape[1])
            rows_predicted.append(len(trainer.predict(trainer.eval_dataset).predictions))

    lengths: list[int] = []
    rows_predicted: list[int] = []
    trainer = make(args={"eval_strategy": "steps", "eval_steps": 1}, eval_dataset=rows)
    trainer.add_callback(Sampler)
    trainer.train()
    assert (lengths, rows_predicted) == ([4, 4], [7, 7])


def test_rich_progress_replaces_the_progress_bar(make) -> None:
    trainer = make(callbacks=[RichProgressCallback])
    names = {type(callback).__name__ for callback in trainer.callback_handler.callbacks}
    assert names.isdisjoint({"ProgressCallback", "PrinterCallback"})
    assert trainer.train().global_step == 2


def test_the_scripts_own_optimizers_are_used(make, weights, same) -> None:
    model = tiny_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    before = weights(model)
    make(model, optimizers=(optimizer, schedule)).train()
    assert same(before, weights(model))


def test_group_by_length_groups_rows_of_similar_length(make) -> None:
    trainer = make(args={"group_by_length": True})
    assert isinstance(trainer._get_train_sampler(trainer.train_dataset), Grouped)
    assert trainer.train().global_step == 2


def test_bf16_trains_on_a_cpu(make) -> None:
    trainer = make(args={"bf16": True})
    assert trainer.train().training_loss > 0
    assert trainer.model.dtype == torch.float32
