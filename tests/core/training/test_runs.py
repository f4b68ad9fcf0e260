"""A run changes no inputs, overwrites nothing, and writes all that is needed."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback

from sftkit.errors import ConfigError, DataError
from sftkit.run.pipeline import Pipeline
from sftkit.testing import tiny_conversations, tiny_model, tiny_tokenizer
from sftkit.training.trainer import TokenLossTrainer


def test_inputs_are_never_changed(tmp_path, distance):
    model, tokenizer, data = tiny_model(vocab_size=400), tiny_tokenizer(), tiny_conversations()
    vocabulary, rows = len(tokenizer), json.dumps(data)
    train = {"output_dir": str(tmp_path / "run"), "max_steps": 1, "learning_rate": 0.1, "use_cpu": True}
    result = Pipeline(model=model, data=data, tokenizer=tokenizer, plugins=["chatml"], train=train).run()
    assert distance(model, tiny_model(vocab_size=400)) == 0
    assert (len(tokenizer), tokenizer.chat_template, json.dumps(data)) == (vocabulary, None, rows)
    assert result.tokenizer.chat_template
    assert train == {"output_dir": str(tmp_path / "run"), "max_steps": 1, "learning_rate": 0.1, "use_cpu": True}


def test_the_run_directory_contains_all_that_is_needed(make_run):
    result = make_run(plugins=["neftune"], train={"logging_steps": 1}).run()
    names = {path.name for path in result.directory.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "manifest.json", "log.jsonl"} <= names
    assert not list(result.directory.rglob("*.bin"))
    use_cache = json.loads((result.directory / "config.json").read_text())["use_cache"]
    assert use_cache is True  # without a cache, the saved model would generate slowly
    again = AutoModelForCausalLM.from_pretrained(result.directory)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(again.eval()(ids).logits, result.model.eval()(ids).logits)
    assert len(AutoTokenizer.from_pretrained(result.directory)) == len(result.tokenizer)


def test_the_manifest_describes_the_run(make_run):
    result = make_run(plugins=["neftune"]).run()
    manifest = json.loads((result.directory / "manifest.json").read_text())
    assert manifest["status"] == "done"
    assert manifest["config"]["plugins"]["neftune"] == {"alpha": 5.0}
    assert manifest["plugins"]["neftune"]["distribution"] == "sftkit-train"
    assert manifest["data"]["train"]["rows"] == 8
    assert manifest["metrics"]["train_loss"] == result.metrics["train_loss"]
    assert {"sftkit", "torch", "transformers"} <= set(manifest["versions"])


def test_an_existing_run_is_overwritten_only_on_request(make_run, tmp_path):
    make_run().run()
    kept = (tmp_path / "run" / "manifest.json").read_text()
    with pytest.raises(ConfigError, match="run already"):
        make_run().run()
    assert (tmp_path / "run" / "manifest.json").read_text() == kept
    make_run(overwrite=True, train={"seed": 7}).run()
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["seeds"]["seed"] == 7


def test_a_directory_with_other_files_is_never_overwritten(make_run, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        make_run(overwrite=True).run()
    assert (tmp_path / "run" / "thesis.tex").exists()


def test_a_missing_model_is_an_error(make_run, tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        make_run(model=str(tmp_path / "nowhere")).run()


def test_data_with_nothing_to_train_fails_before_weights_are_read(make_run, tmp_path):
    directory = tmp_path / "weights"
    tiny_tokenizer().save_pretrained(directory)
    AutoConfig.for_model("llama", vocab_size=320).save_pretrained(directory)
    (directory / "model.safetensors").write_bytes(b"not weights: reading them would fail")
    with pytest.raises(DataError):
        make_run(data=[{"prompt": "only a prompt", "completion": ""}], model=str(directory)).run()


def test_model_options_for_a_loaded_model_are_an_error(make_run):
    config = {"model": {"name": "x", "options": {"attn_implementation": "eager"}}}
    with pytest.raises(ConfigError, match="loaded already"):
        make_run(config=config).run()


def test_formatting_collator_and_callbacks_can_be_passed(make_run):
    seen = []

    class Counter(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            seen.append(state.global_step)

    def collate(examples):
        seen.append("batch")
        width = max(len(example["input_ids"]) for example in examples)
        pad = [(example, width - len(example["input_ids"])) for example in examples]
        return {
            "input_ids": torch.tensor([list(e["input_ids"]) + [2] * n for e, n in pad]),
            "labels": torch.tensor([list(e["labels"]) + [-100] * n for e, n in pad]),
            "attention_mask": torch.tensor([[1] * (width - n) + [0] * n for _, n in pad]),
        }

    def formatting(row):
        return f"{row['q']} {row['a']}"

    data = Dataset.from_list([{"q": "Hello", "a": f"Paris {number}"} for number in range(4)])
    plugins = [{"formats": {"formatting": formatting}}]
    make_run(data=data, plugins=plugins, collator=collate, callbacks=[Counter()]).run()
    assert 2 in seen
    assert "batch" in seen


def test_the_trainer_is_a_transformers_trainer():
    assert issubclass(TokenLossTrainer, Trainer)


def test_messages_without_a_chat_template_are_an_error(make_run):
    with pytest.raises(ConfigError, match="chatml"):
        make_run(data=tiny_conversations()).run()
