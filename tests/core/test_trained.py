"""Loading what a run has saved."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from sftkit import Pipeline
from sftkit.api import ConfigError, load_trained, prompt_ids, read_run, source_formats
from sftkit.testing import tiny_model, tiny_tokenizer

ROWS = [{"messages": [{"role": "user", "content": word}, {"role": "assistant", "content": "yes"}]} for word in "abcd"]


def _save(directory):
    tiny_model().save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that trained an adapter with new tokens, and its result."""
    folder = tmp_path_factory.mktemp("trained")
    train = {"output_dir": str(folder / "run"), "max_steps": 2, "save_steps": 1, "learning_rate": 0.1}
    base = _save(folder / "base")
    plugins = ["chatml", "peft:r=2"]
    return Pipeline(str(base), ROWS, plugins=plugins, train=train).run()


def test_the_model_of_a_run_answers_as_it_did_when_it_was_trained(run):
    trained = load_trained(run.directory)
    ids = trained.tokenizer.apply_chat_template(ROWS[0]["messages"], return_tensors="pt", return_dict=True)
    assert trained.tokenizer.chat_template == run.tokenizer.chat_template
    assert trained.manifest["metrics"] == read_run(run.directory)["metrics"]
    assert not trained.model.training
    with torch.no_grad():
        torch.testing.assert_close(trained.model(**ids).logits, run.model.eval()(**ids).logits)


def test_the_model_of_a_checkpoint_is_an_earlier_one(run):
    first, last = (load_trained(run.directory / name).model.state_dict() for name in ("checkpoint-1", "checkpoint-2"))
    assert first.keys() == last.keys()
    assert any(not torch.equal(first[name], last[name]) for name in first)


def test_a_model_that_no_run_trained_has_no_manifest(tmp_path):
    trained = load_trained(_save(tmp_path), dtype="bfloat16")
    assert trained.manifest is None
    assert trained.model.dtype == torch.bfloat16


def test_a_run_without_a_model_is_an_error(run, tmp_path, monkeypatch):
    (tmp_path / "manifest.json").write_bytes((run.directory / "manifest.json").read_bytes())
    with pytest.raises(ConfigError, match="the run has saved no model"):
        load_trained(tmp_path)
    monkeypatch.chdir(run.directory.parent)
    with pytest.raises(ConfigError, match="runs/first: there is no such run -> there is no run in"):
        load_trained("runs/first")
    with pytest.raises(ConfigError, match="there is no such directory"):
        read_run(tmp_path / "nothing")


def test_what_is_no_model_is_an_error_that_names_one(run, tmp_path):
    with pytest.raises(ConfigError, match=r"no model in this directory -> name one of the runs in it: .*run"):
        load_trained(run.directory.parent)
    with pytest.raises(ConfigError, match=r"no run in this directory -> name one of the runs in it: .*run"):
        read_run(run.directory.parent)
    with pytest.raises(ConfigError, match="this is a file -> name the directory"):
        load_trained(run.directory / "log.jsonl")
    with pytest.raises(ConfigError, match="no such checkpoint -> there is checkpoint-1, checkpoint-2 in"):
        load_trained(run.directory / "checkpoint-7")
    with pytest.raises(ConfigError, match=r"the device 'nothing' cannot be used: .* -> `sftkit doctor`"):
        load_trained(run.directory, device="nothing")


def test_a_base_model_that_has_moved_is_named_and_can_be_given(run, tmp_path):
    place = tmp_path / "adapter"
    shutil.copytree(run.directory, place)
    settings = json.loads((place / "adapter_config.json").read_text())
    base = settings["base_model_name_or_path"]
    (place / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "./models/base"}))
    with pytest.raises(ConfigError, match=r"there is no directory './models/base' -> .*looked up in .*--base DIR"):
        load_trained(place)
    moved = load_trained(place, base=base)
    assert len(moved.tokenizer) == len(run.tokenizer)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(moved.model(ids).logits, run.model.eval()(ids).logits)
    with pytest.raises(ConfigError, match="is no adapter"):
        load_trained(base, base=base)


def test_an_adapter_on_random_weights_cannot_be_loaded(run, tmp_path):
    place = tmp_path / "adapter"
    shutil.copytree(run.directory, place)
    manifest = json.loads((place / "manifest.json").read_text())
    manifest["config"]["model"]["init"] = "random"
    (place / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ConfigError, match="the adapter was trained on random weights, which no run saves"):
        load_trained(place)


def test_an_adapter_without_a_tokenizer_gets_that_of_the_base_model_that_is_given(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = tiny_model()
    model.name_or_path = "./gone"
    get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2)).save_pretrained(tmp_path / "adapter")
    trained = load_trained(tmp_path / "adapter", base=_save(tmp_path / "base"))
    assert len(trained.tokenizer) == len(tiny_tokenizer())
    assert "lora_A" in " ".join(trained.model.state_dict())


def test_the_columns_of_the_data_are_in_the_manifest(run):
    trained = load_trained(run.directory)
    (source,) = source_formats(trained)
    assert list(source.columns) == ["messages"]
    assert not source.formatter.adds_special_tokens
    assert prompt_ids(trained.tokenizer, "yes", "bos_eos")[0] == trained.tokenizer.bos_token_id
    assert prompt_ids(trained.tokenizer, "yes", "bos_eos")[1:] == prompt_ids(trained.tokenizer, "yes", "none")


@pytest.mark.slow
def test_a_quantized_base_is_quantized_again(tmp_path):
    pytest.importorskip("bitsandbytes")
    tiny_model(hidden_size=64, intermediate_size=128, head_dim=32).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    train = {"output_dir": str(tmp_path / "run"), "max_steps": 1}
    result = Pipeline(str(tmp_path / "base"), ROWS, plugins=["bitsandbytes", "chatml", "peft:r=2"], train=train).run()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        trained = load_trained(tmp_path / "run").model(ids).logits
        assert torch.equal(trained, result.model.eval()(ids).logits)
        assert not torch.equal(trained, load_trained(tmp_path / "run", quantized=False).model(ids).logits)
