"""Every run writes config.yaml, which runs again as it is."""

from __future__ import annotations

import json
import os

import pytest
import torch
import yaml

from sftkit import Pipeline
from sftkit.api import Plugin, dataclass, hookimpl
from sftkit.config.source import read_yaml
from sftkit.errors import ConfigError
from sftkit.run.config_file import CONFIG
from sftkit.testing import tiny_conversations, tiny_model, tiny_tokenizer

TEMPLATE = "{% for message in messages %}{{ message['content'] }}${\n{% endfor %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A project: a model, data, and a configuration in a folder of its own."""
    path = tmp_path_factory.mktemp("project")
    tiny_model().save_pretrained(path / "model")
    tiny_tokenizer().save_pretrained(path / "model")
    (path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny_conversations(6)), "utf-8")
    (path / "configs").mkdir()
    (path / "configs" / "t.jinja").write_text("{% for m in messages %}{{ m.content + eos_token }}{% endfor %}", "utf-8")
    (path / "configs" / "sft.yaml").write_text(
        "model: ../model\ndata: {train: ../train.jsonl, eval: 0.34, max_length: 48}\n"
        "train: {max_steps: 2, learning_rate: 3.0e-3, logging_steps: 1, per_device_train_batch_size: ${SIZE:-2}}\n"
        "plugins: {chatml: {template: t.jinja}, neftune: {alpha: 3}, formats: {loss: all}, checks: false}\n",
        "utf-8",
    )
    return path


@pytest.fixture(scope="module")
def first(folder):
    """A run of the configuration, from the working directory of the project."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        return Pipeline(config="configs/sft.yaml", train={"output_dir": "runs/a"}).run()
    finally:
        os.chdir(before)


def history(directory):
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    names = ("step", "loss", "grad_norm", "learning_rate", "eval_loss")
    return [{name: line[name] for name in names if name in line} for line in lines]


def test_the_file_says_what_was_set_with_absolute_paths(folder, first):
    written = yaml.safe_load((folder / "runs/a" / CONFIG).read_text(encoding="utf-8"))
    assert written == {
        "model": {"name": str(folder / "model")},
        "data": {"train": str(folder / "train.jsonl"), "eval": 0.34, "max_length": 48},
        "train": {"max_steps": 2, "learning_rate": 3e-3, "logging_steps": 1, "per_device_train_batch_size": 2},
        "plugins": {
            "chatml": {"template": str(folder / "configs" / "t.jinja")},
            "neftune": {"alpha": 3.0},
            "formats": {"loss": "all"},
            "checks": False,
        },
    }
    assert list(written) == ["model", "data", "train", "plugins"]
    assert CONFIG in json.loads((folder / "runs/a/manifest.json").read_text(encoding="utf-8"))["files"]


def test_it_gives_the_same_losses_and_weights_bit_by_bit(folder, first, tmp_path):
    again = Pipeline(config=folder / "runs/a" / CONFIG, train={"output_dir": str(tmp_path / "again")}).run()
    assert history(again.directory) == history(folder / "runs/a")
    one, other = first.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in {*one, *other})


def test_it_makes_a_new_directory_and_continues_its_own_with_resume(folder, first, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = folder / "runs/a" / CONFIG
    assert str(Pipeline(config=config)._directory.path).startswith("runs/2")
    resumed = Pipeline(config=config, resume=True, train={"max_steps": 3}).run()
    assert (resumed.directory, resumed.status) == (folder / "runs/a", "trained")
    assert yaml.safe_load(config.read_text(encoding="utf-8"))["train"]["max_steps"] == 3


def test_overwrite_removes_it_with_the_run_but_never_a_file_of_the_user(folder, tmp_path):
    def run(**options):
        train = {"output_dir": str(tmp_path / "run"), "max_steps": 0}
        return Pipeline(config=folder / "configs" / "sft.yaml", train=train, **options).run()

    run()
    (tmp_path / "run" / CONFIG).write_text("model: of an earlier run", "utf-8")
    run(overwrite=True)
    assert "max_steps: 0" in (tmp_path / "run" / CONFIG).read_text(encoding="utf-8")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"].remove(CONFIG)
    (tmp_path / "run" / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    (tmp_path / "run" / CONFIG).write_text("mine", "utf-8")
    run(overwrite=True)
    assert (tmp_path / "run" / CONFIG).read_text(encoding="utf-8") == "mine"


@dataclass(frozen=True, kw_only=True)
class Reports(Plugin):
    """Has a secret and text of several lines."""

    api_key: str = ""
    note: str = ""
    when: object = None

    @hookimpl
    def reduce_activations(self, model, config):
        return None


def written(tmp_path, text, **options):
    (tmp_path / "sft.yaml").write_text(text, "utf-8")
    return Pipeline(config=tmp_path / "sft.yaml", **options).written()


def test_secrets_are_not_written_but_the_variables_that_hold_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKER_KEY", "abc")
    monkeypatch.setenv("HF_TOKEN", "a-long-secret")
    name = f"{__name__}:Reports"
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__("sys").modules[Reports.__module__])
    text = "model: {name: demo, options: {token: ${HF_TOKEN}}}\ndata: demo\nplugins:\n  " + name + ": {api_key: "
    made = written(tmp_path, text + "${TRACKER_KEY}}\n")
    assert "token: ${HF_TOKEN}" in made.text
    assert "api_key: ${TRACKER_KEY}" in made.text
    assert "Set these environment variables first: HF_TOKEN, TRACKER_KEY" in made.text
    assert made.secrets == {"HF_TOKEN": "a-long-secret", "TRACKER_KEY": "abc"}
    literal = written(tmp_path, text + "xyz}\n").text
    assert "xyz" not in literal
    (tmp_path / "again.yaml").write_text(literal, "utf-8")
    with pytest.raises(ConfigError, match="_API_KEY is not set"):
        read_yaml(tmp_path / "again.yaml")


def test_text_is_read_back_as_it_was(tmp_path):
    note = 'a: \'${x}\n  # b\n\n\t"c" $${\n'
    made = Pipeline("demo", "demo", plugins=[{"formats": {"loss": "all"}}, Reports(note=note, when="2024-01-01")])
    (tmp_path / CONFIG).write_text(made.written().text, "utf-8")
    (options,) = (v for k, v in read_yaml(tmp_path / CONFIG).values["plugins"].items() if k.endswith(":Reports"))
    assert options == {"note": note, "when": "2024-01-01"}


def test_python_objects_are_named_and_refused_when_it_is_run(tmp_path):
    rows, plugins = tiny_conversations(2), [{"formats": {"formatting": lambda row: "text"}}]
    pipeline = Pipeline(tiny_model(), rows, tokenizer=tiny_tokenizer(), callbacks=[print], plugins=plugins)
    (tmp_path / CONFIG).write_text(pipeline.written().text, "utf-8")
    problems = "\n".join(map(str, Pipeline(config=tmp_path / CONFIG).check()))
    assert "model.name: the run had a loaded LlamaForCausalLM here, which a file cannot hold" in problems
    assert "data.train: the run had a loaded list here" in problems
    assert "model.tokenizer: the run had a loaded " in problems
    assert "not_written.callbacks: the run had the Python object print, which a file cannot hold" in problems
    assert "not_written.plugins.formats.formatting: the run had the Python object" in problems
