"""Loading what a run has saved."""

from __future__ import annotations

import pytest
import torch

from sftkit import Pipeline
from sftkit.api import ConfigError, load_trained, read_run
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


def test_a_run_without_a_model_is_an_error(run, tmp_path):
    (tmp_path / "manifest.json").write_bytes((run.directory / "manifest.json").read_bytes())
    with pytest.raises(ConfigError, match="the run has saved no model"):
        load_trained(tmp_path)
    with pytest.raises(ConfigError, match="there is no such directory"):
        read_run(tmp_path / "nothing")
