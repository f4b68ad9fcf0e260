"""A directory as the pages assume it."""

from __future__ import annotations

import json
import re
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
    "base.yaml": SETTINGS,
    "new.yaml": SETTINGS,  # what `sftkit init new.yaml` writes
    "lora.yaml": "plugins: {peft: {r: 4}}\n",
    "ds.json": "{}",
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
    for name, some in {"train": rows[:48], "eval": rows[48:], "test": rows[48:], "chats": rows}.items():
        write_rows(path / f"{name}.jsonl", some)
    for name, text in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text, encoding="utf-8")
    (path / "runs/a").mkdir(parents=True)
    written = re.sub(r"model(?=})|\w+\.jsonl", lambda found: str(path / found[0]), SETTINGS)
    (path / "runs/a/config.yaml").write_text(written, encoding="utf-8")
    (path / "examples").symlink_to(ROOT / "examples")
    return path
