"""A directory with a tiny model and small files of data, which the configurations of the tests name."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

from sftkit.testing import CHATML, tiny_model, tiny_tokenizer
from sftkit.user_modules import DirectoryFinder

HERE = Path(__file__).parent
TURNS = [("What is {} plus one?", "It is {}."), ("Sure?", "Yes: {}.")]


def rows_of(number: int, first: int = 0):
    """Rows of each kind, by the name of their file."""
    asked = [(f"What is {n} plus one?", f"It is {n + 1}.") for n in range(first, first + number)]
    return {
        "chat.jsonl": [
            {"messages": [{"role": "system", "content": "Be brief."}, *_turns(q, a), *_turns("Sure?", "Yes.")]}
            for q, a in asked
        ],
        "sharegpt.jsonl": [
            {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]} for q, a in asked
        ],
        "alpaca.jsonl": [
            {"instruction": q, "input": "Briefly." if n % 2 else "", "output": a} for n, (q, a) in enumerate(asked)
        ],
        "articles.jsonl": [{"article": f"{q} {a}", "source": "x"} for q, a in asked],
        "text.jsonl": [{"text": f"### Question: {q}\n### Answer: {a}"} for q, a in asked],
        "pairs.jsonl": [{"prompt": q, "completion": f" {a}"} for q, a in asked],
        "questions.jsonl": [{"q": q, "context": "Briefly." if n % 2 else "", "a": a} for n, (q, a) in enumerate(asked)],
        "segments.jsonl": [
            {"segments": [{"label": False, "text": f"<s>{q}\n"}, {"label": True, "text": f"{a}</s>"}]} for q, a in asked
        ],
    }


def _turns(question: str, answer: str):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """The directory that each test gets a copy of."""
    path = tmp_path_factory.mktemp("world")
    tiny_model().save_pretrained(path / "model")
    tiny_tokenizer(chat_template=CHATML).save_pretrained(path / "model")
    tiny_tokenizer().save_pretrained(path / "plain")  # without a chat template
    shutil.copy(path / "model" / "model.safetensors", path / "plain")
    shutil.copy(path / "model" / "config.json", path / "plain")
    adapted = get_peft_model(tiny_model(), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    adapted.peft_config["default"].base_model_name_or_path = "model"
    adapted.save_pretrained(path / "adapter")
    for name, rows in rows_of(20).items():
        (path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    held_out = rows_of(4, 100)["chat.jsonl"]
    (path / "chat_eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held_out), encoding="utf-8")
    for folder, name in (("chats", "chat.jsonl"), ("pairs", "pairs.jsonl")):
        (path / folder).mkdir()
        shutil.copy(path / name, path / folder / "train.jsonl")
    shutil.copy(path / "chat_eval.jsonl", path / "chats" / "test.jsonl")
    return path


@pytest.fixture
def workdir(world, tmp_path, monkeypatch):
    """The working directory, with links to the model and the data."""
    for path in world.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    # Each translation has a module of this name, which a process imports once.
    finders = [finder for finder in sys.meta_path if not isinstance(finder, DirectoryFinder)]
    monkeypatch.setattr(sys, "meta_path", finders)
    sys.modules.pop("sft_prompts", None)
    return tmp_path
