"""The configuration and the commands of the README pass `sftkit check` as they are written."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from sftkit import Pipeline
from sftkit.api import pipeline_from
from sftkit.testing import CHATML, tiny_conversations, tiny_model, tiny_tokenizer
from sftkit_commands.check.checks import run_checks

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
NAME = "Qwen/Qwen3-0.6B"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A directory with ``train.jsonl``, in which some rows are duplicates, and a tiny model of the README's name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))
    tiny_model().save_pretrained(NAME)
    tiny_tokenizer(chat_template=CHATML).save_pretrained(NAME)
    rows = [*tiny_conversations(50), *tiny_conversations(50)]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_the_configuration_file_is_accepted():
    (block,) = (found for found in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL) if "eval: 0.05" in found)
    Path("sft.yaml").write_text(block, encoding="utf-8")
    pipeline = Pipeline(config="sft.yaml", train={"use_cpu": True})
    report = run_checks(pipeline)
    assert [str(verdict) for verdict in report.verdicts if verdict.status == "wrong"] == []
    assert report.data["eval"]["rows"] == 5
    assert pipeline.run().metrics["eval_loss"] > 0


def test_the_commands_are_accepted():
    commands = re.findall(rf"sftkit run --model {NAME} .*", README.replace("\\\n", ""))
    assert len(commands) == 1
    for command in commands:
        parts = shlex.split(command)[2:]
        options = [parts[at + 1] for at, part in enumerate(parts) if part in ("-p", "--plugin")]
        assignments = [part for at, part in enumerate(parts) if "=" in part and parts[at - 1] not in ("-p", "--plugin")]
        assert "data.eval=0.05" in assignments
        report = run_checks(pipeline_from(assignments, options, NAME, "train.jsonl"))
        assert [str(verdict) for verdict in report.verdicts if verdict.status == "wrong"] == []
