"""The page on images and the example run unchanged, on a tiny model and drawn images."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from typer.testing import CliRunner
from vision_models import drawn_image, tiny_vision_model

from sftkit import Pipeline
from sftkit.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "vision.md").read_text("utf-8")
MODEL = "llava-hf/llava-1.5-7b-hf"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the model and the images of the page's rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))
    model, processor = tiny_vision_model()
    model.save_pretrained(tmp_path / MODEL)
    processor.save_pretrained(tmp_path / MODEL)
    (tmp_path / "images").mkdir()
    for name, colour in (("cat", "red"), ("dog", "blue")):
        drawn_image(colour).save(tmp_path / "images" / f"{name}.png")
    return tmp_path


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found
    return found[1]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_each_row_of_the_page_can_be_prepared(here: Path, number: int) -> None:
    (here / "conversations.jsonl").write_text(block("json").splitlines()[number], "utf-8")
    plugins = [{"vision": {"image_folder": "images"}}]
    ready = Pipeline(model=MODEL, data="conversations.jsonl", plugins=plugins).prepare()
    assert ready.data.counts.by_split["train"]["images"] == (2 if number == 0 else 1)


def test_the_yaml_file_and_the_pipeline_of_the_page_give_the_same_weights(here: Path) -> None:
    (here / "conversations.jsonl").write_text((block("json").splitlines()[1] + "\n") * 8, "utf-8")
    (here / "vision.yaml").write_text(block("yaml"), "utf-8")
    assert yaml.safe_load(block("yaml"))["model"] == MODEL
    short = ["train.max_steps=2", "train.use_cpu=true", "train.report_to=none", "train.output_dir=one"]
    result = CliRunner().invoke(app, ["run", "vision.yaml", *short])
    assert result.exit_code == 0, result.output
    code = block("python").replace('"runs/llava"}', '"two", "max_steps": 2, "use_cpu": True, "report_to": "none"}')
    names: dict[str, Any] = {}
    exec(code, names)
    one, two = (_weights(here / name) for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def _weights(directory: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    loaded: dict[str, torch.Tensor] = load_file(directory / "adapter_model.safetensors")
    return loaded


@pytest.mark.parametrize("adapter", [False, True])
def test_the_example_trains_evaluates_and_saves(here: Path, monkeypatch: pytest.MonkeyPatch, adapter: bool) -> None:
    from transformers import AutoProcessor

    content = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    answer = [{"type": "text", "text": "Red."}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    rows = Dataset.from_list([{"images": [drawn_image("red")], "messages": messages}] * 8)
    (here / "data").mkdir()
    rows.to_parquet(here / "data" / "train-0.parquet")
    rows.select([0]).to_parquet(here / "data" / "test-0.parquet")
    arguments = ["--model_name_or_path", MODEL, "--dataset_name", "data", "--output_dir", "out", "--use_cpu"]
    arguments += ["--max_steps", "4", "--eval_strategy", "steps", "--eval_steps", "1", "--report_to", "none"]
    arguments += ["--learning_rate", "0.01", "--gradient_checkpointing"]
    arguments += ["--use_peft", "--lora_target_modules", "all-linear"] if adapter else []
    monkeypatch.setattr(sys, "argv", ["vsft_llava.py", *arguments])
    made = runpy.run_path(str(ROOT / "examples" / "vsft_llava.py"))
    made["main"]()
    assert AutoProcessor.from_pretrained("out").image_token == "<image>"
    state = json.loads((here / "out" / "checkpoint-4" / "trainer_state.json").read_text("utf-8"))
    losses = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
    assert losses[-1] < losses[0]
