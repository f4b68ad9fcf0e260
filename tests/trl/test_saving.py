"""Checkpoints, resumed runs, saved models and model cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from huggingface_hub import HfApi
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, EarlyStoppingCallback, TrainerCallback

from sftkit.testing import tiny_model

SAVES = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


@pytest.mark.parametrize("options", [{}, {"packing": True}, {"neftune_noise_alpha": 5.0}], ids=str)
def test_a_resumed_run_ends_like_an_uninterrupted_one(make, tmp_path, options, weights, same) -> None:
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


def test_early_stopping_loads_the_best_checkpoint(make, rows) -> None:
    options = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 6}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False}
    stop = EarlyStoppingCallback(early_stopping_patience=2)
    trainer = make(args={**options, **best, "learning_rate": 3.0}, eval_dataset=rows, callbacks=[stop])
    trainer.train()
    assert trainer.state.global_step < 6
    assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric)


def test_save_model_writes_model_tokenizer_and_card(make, tmp_path, weights, same) -> None:
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


def test_a_callback_can_save_the_adapter(make, tmp_path) -> None:
    class Saves(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **objects: Any) -> Any:
            objects["model"].save_pretrained(Path(args.output_dir, f"adapter-{state.global_step}"))
            return control

    options = {"save_strategy": "steps", "save_steps": 1}
    make(args=options, callbacks=[Saves], peft_config=LoraConfig(task_type="CAUSAL_LM")).train()
    assert (tmp_path / "out" / "adapter-2" / "adapter_model.safetensors").is_file()


def test_the_model_is_tagged(make) -> None:
    trainer = make()
    assert trainer.model.model_tags == trainer._tag_names == ["trl", "sft"]


def test_a_model_with_an_adapter_is_tagged(make) -> None:
    trainer = make(peft_config=LoraConfig(task_type="CAUSAL_LM"))
    assert trainer.model.model_tags == trainer._tag_names


def test_a_card_has_the_scripts_tags_and_the_trainers(make, tmp_path) -> None:
    trainer = make()
    trainer.train()
    asked = {"language": "en", "license": "mit", "finetuned_from": "base", "dataset": "d", "dataset_tags": "t"}
    trainer.create_model_card(tags="mine", model_name="name", **asked)
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(f"- {tag}" in card for tag in ("mine", "trl", "sft"))


def test_the_model_is_pushed_with_its_tags(make, tmp_path) -> None:
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


def test_training_metrics_can_be_logged_and_saved(make, tmp_path) -> None:
    trainer = make()
    metrics = trainer.train().metrics
    trainer.log_metrics("train", metrics)
    trainer.save_metrics("train", metrics)
    trainer.save_state()
    assert {"train_loss", "train_runtime", "train_samples_per_second", "epoch"} <= metrics.keys()
    assert (tmp_path / "out" / "train_results.json").is_file()
    assert (tmp_path / "out" / "trainer_state.json").is_file()
