"""Runs to report on: a small real one, and directories that are written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sftkit import Pipeline
from sftkit.testing import tiny_model, tiny_tokenizer
from sftkit_commands.report.reading import Run, read_runs

EVIL = "</script><script>document.title = 'evil'</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="session")
def evil() -> str:
    """Text that would run if it were not escaped."""
    return EVIL


@pytest.fixture(scope="session")
def real_run(tmp_path_factory) -> Path:
    """The directory of a run of three steps on two files, with an evaluation and hostile text in the data."""
    directory = tmp_path_factory.mktemp("report")
    files = []
    for name, text in {"a": "Paris is the capital of France.", "b": EVIL}.items():
        rows = [{"prompt": f"Question {number}: ", "completion": text, "id": number} for number in range(8)]
        files.append(str(directory / f"{name}.jsonl"))
        Path(files[-1]).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    train = {"max_steps": 3, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "use_cpu": True}
    train |= {"save_strategy": "no", "per_device_train_batch_size": 4, "output_dir": str(directory / "run")}
    data = {"train": files, "eval": 0.25, "max_length": 200}
    Pipeline(model=tiny_model(), tokenizer=tiny_tokenizer(), data=data, train=train).run()
    samples = [
        {
            "prompt": EVIL,
            "reference": "yes",
            "completions": [{"step": 0, "text": "no", "exact": False}, {"step": 3, "text": "yes", "exact": True}],
        }
    ]
    (directory / "run" / "samples.jsonl").write_text("".join(json.dumps(one) + "\n" for one in samples))
    return directory / "run"


def manifest(status: str = "done", parts: list[dict[str, Any]] | None = None, **values: Any) -> dict[str, Any]:
    """A manifest as a run writes it, with as little as possible in it."""
    part = {"started": "2026-01-01T00:00:00+00:00", "ended": None, "status": status, "from_step": 0, "to_step": None}
    part |= {"host": "here", "world_size": 1, "changes": {}, "device": "CPU"}
    return {
        "status": status,
        "parts": [{**part, **one} for one in parts or [{}]],
        "config": {"model": {"name": "m"}, "data": {"train": "a.jsonl"}, "train": {}, "run": {}, "plugins": {}},
        "train": {},
        "plugins": {},
        "data": {},
        "versions": {},
        "writes": [],
        "metrics": {},
        **values,
    }


@pytest.fixture
def write_run(tmp_path):
    """Writes the directory of a run, and reads it back."""

    def write(name: str = "run", log: Any = (), **values: Any) -> Run:
        directory = tmp_path / name
        directory.mkdir()
        (directory / "manifest.json").write_text(json.dumps(manifest(**values)), encoding="utf-8")
        (directory / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log), encoding="utf-8")
        (run,) = read_runs([directory])
        return run

    return write
