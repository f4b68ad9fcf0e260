"""Every example runs, on a tiny model and a few rows."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest

from sftkit.testing import CHATML, tiny_conversations, tiny_model, tiny_tokenizer

ROOT = Path(__file__).resolve().parents[2]
CONFIGURATIONS = sorted(path.name for path in (ROOT / "examples").glob("*.yaml"))
SCRIPTS = sorted(path.name for path in (ROOT / "examples").glob("*.py") if path.name != "vsft_llava.py")
SMALL = ("data.max_length=128", "train.max_steps=2", "train.gradient_accumulation_steps=1", "train.bf16=false")
SMALL = (*SMALL, "train.use_cpu=true", "train.warmup_steps=0", "train.eval_strategy=no", "train.report_to=none")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a tiny model, and data under the names that the examples use."""
    path = tmp_path_factory.mktemp("examples")
    tiny_model().save_pretrained(path / "model")
    tiny_tokenizer(chat_template=CHATML).save_pretrained(path / "model")
    chat = tiny_conversations(60)
    text = [{"text": f"### Question: {number} + 1?\n ### Answer: {number + 1}"} for number in range(60)]
    files = {
        "train": chat[:50],
        "chat": chat[:30],
        "code": chat[30:50],
        "chat-eval": chat[50:55],
        "code-eval": chat[55:],
    }
    for name, rows in {**files, "text": text}.items():
        (path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_trains(name, place, in_process, tmp_path, monkeypatch):
    if name == "qlora.yaml":
        pytest.importorskip("bitsandbytes")
    overrides = [f"model.name={place / 'model'}", "model.dtype=float32", *SMALL]
    if name == "completion_only.yaml":
        overrides.append("data.train=text.jsonl")
    monkeypatch.chdir(place)
    shutil.copy(ROOT / "examples" / name, place)  # beside the data: its paths are relative to the file
    code, output = in_process("run", name, *overrides, "-o", tmp_path / "run")
    assert code == 0, output
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "done"
    assert manifest["metrics"]["train_loss"] > 0


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_trains(name, place, tmp_path, monkeypatch):
    arguments = ["--model", place / "model", "--steps", "2", "--output", tmp_path / "run"]
    if name != "loaded_model.py":
        arguments += ["--data", place / "train.jsonl"]
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
    assert (tmp_path / "run" / "manifest.json").exists()


def test_every_example_is_in_the_readme():
    text = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    for name in [*CONFIGURATIONS, *SCRIPTS, "vsft_llava.py"]:
        assert f"[{name}]({name})" in text
