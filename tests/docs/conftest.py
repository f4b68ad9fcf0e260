"""A directory as the pages assume it."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from doc_blocks import ROOT

from sftkit.testing import CHATML, tiny_conversations, tiny_model, tiny_tokenizer

SETTINGS = """\
model: {name: model}
data: {train: train.jsonl, eval: eval.jsonl, max_length: 256}
train: {max_steps: 2, use_cpu: true, report_to: none}
"""
#: Names that the pages give to models.
MODELS = ("model", "DIR", "Qwen/Qwen3-0.6B", "gpt2", "facebook/opt-350m", "EleutherAI/gpt-neo-125m")
#: Files of the reader.
FILES = {
    "sft.yaml": SETTINGS,
    "lora.yaml": "plugins: {peft: {r: 4}}\n",
    "base.yaml": SETTINGS,
    "ds.json": "{}",
    "config.yml": "{base_model: model, datasets: [{path: train.jsonl, type: chat_template}]}",
    "llama3_lora_sft.yaml": "{model_name_or_path: model, stage: sft, dataset: mine, template: qwen}",
    "dataset_info.json": '{"mine": {"file_name": "train.jsonl", "formatting": "sharegpt"}}',
    "mine.jinja": CHATML,
}


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ``sft.yaml``, data, and a tiny model under each of the pages' names."""
    path = tmp_path_factory.mktemp("docs")
    model, tokenizer = tiny_model(), tiny_tokenizer(chat_template=CHATML)
    model.save_pretrained(path / "model")
    tokenizer.save_pretrained(path / "model")
    for name in MODELS[1:]:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).symlink_to(path / "model")
    rows = tiny_conversations(60)
    texts = [{"text": f"### Human: {i} + 1?\n### Assistant: {i + 1}"} for i in range(20)]
    for name, some in {"train": rows[:48], "eval": rows[48:], "test": rows[48:], "chats": rows, "text": texts}.items():
        write_rows(path / f"{name}.jsonl", some)
    for name, text in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text, encoding="utf-8")
    (path / "runs/a").mkdir(parents=True)
    written = re.sub(r"model(?=})|\w+\.jsonl", lambda found: str(path / found[0]), SETTINGS)
    (path / "runs/a/config.yaml").write_text(written, encoding="utf-8")
    (path / "examples").symlink_to(ROOT / "examples")
    return path


@pytest.fixture
def directory(place, tmp_path, monkeypatch) -> Iterator[Path]:
    """A copy of the directory that the pages assume, as the working directory; its modules are forgotten afterwards."""
    shutil.copytree(place, tmp_path, symlinks=True, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    for name, value in {"DATA": "train.jsonl", "USER": "me", "SFTKIT_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    yield tmp_path
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)
