"""Real processes that run the real command, started from one that has imported torch and transformers already."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sftkit.testing import tiny_model, tiny_tokenizer
from sftkit.testing.processes import Command, start_command, warm_processes

Start = Callable[..., Command]


@pytest.fixture(scope="session")
def processes() -> Any:
    """Starts processes that have imported what a run needs."""
    return warm_processes()


@pytest.fixture
def start(processes: Any, tmp_path: Path) -> Iterator[Start]:
    """Starts ``sftkit`` with the given arguments in a process; what still runs at the end is killed.

    Called with the arguments, ``cwd`` (the test's directory by default) and further variables ``env``. Variables that
    libraries read when they are imported have no effect: use the fixture ``cli`` for them.
    """
    started: list[Command] = []

    def run(*arguments: object, cwd: Path = tmp_path, env: dict[str, str] | None = None) -> Command:
        printed = tmp_path / f"printed-{len(started)}.txt"
        started.append(start_command(processes, [*map(str, arguments)], cwd=cwd, printed=printed, env=env))
        return started[-1]

    yield run
    for command in started:
        command.end()


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny model with its tokenizer."""
    path = tmp_path_factory.mktemp("faults") / "model"
    tiny_model().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def configure(saved_model: Path, tmp_path: Path) -> Callable[..., Path]:
    """Writes the configuration of a small run and its data, and returns the configuration's path.

    Called with values of the section ``train`` and, by keyword, other sections and ``rows``. The run has twelve steps
    of two rows, logs each step and saves every fourth.
    """

    def write(rows: list[dict[str, Any]] | None = None, name: str = "run.yaml", **sections: Any) -> Path:
        data = tmp_path / "rows.jsonl"
        if rows is None:
            rows = [{"prompt": f"What is {n}?", "completion": f" {n} is {'one more ' * (n % 4)}"} for n in range(24)]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        train = {
            "max_steps": 12,
            "per_device_train_batch_size": 2,
            "save_strategy": "steps",
            "save_steps": 4,
            "logging_steps": 1,
            "learning_rate": 1e-3,
            "use_cpu": True,
            **sections.pop("train", {}),
        }
        values = {"model": {"name": str(saved_model)}, "data": {"train": str(data)}, "train": train, **sections}
        path = tmp_path / name
        path.write_text(yaml.safe_dump(values), encoding="utf-8")
        return path

    return write
