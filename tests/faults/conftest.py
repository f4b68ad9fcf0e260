"""Real processes that run the real command, started from one that has imported torch and transformers already."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from sftkit.testing import tiny_model, tiny_tokenizer

WAIT = 120  # seconds after which a process hangs


def _main(arguments: list[str], directory: Path, printed: Path, variables: dict[str, str]) -> None:
    """The command line, in a process group of its own, with what it prints in a file."""
    os.setsid()
    os.chdir(directory)
    os.environ.update(variables)
    with printed.open("wb", buffering=0) as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    sys.argv = ["sftkit", *arguments]
    from sftkit.cli import main

    main()


@dataclass
class Command:
    """A command that runs in a process."""

    process: Any
    printed: Path

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.printed.read_text(encoding="utf-8", errors="replace")

    def send(self, signal: int) -> None:
        """Send a signal to the process."""
        os.kill(self.process.pid, signal)

    def wait(self) -> int:
        """The exit code; that of a process that a signal ended is negative."""
        self.process.join(WAIT)
        assert self.process.exitcode is not None, f"the command hangs\n{self.output}"
        return int(self.process.exitcode)

    def wait_until(self, condition: Callable[[], Any]) -> None:
        """Wait for a condition, such as a file that the command writes, while it runs."""
        deadline = time.monotonic() + WAIT
        while not condition():
            assert self.process.exitcode is None, f"it ended with exit code {self.process.exitcode}\n{self.output}"
            assert time.monotonic() < deadline, f"the condition is not met\n{self.output}"
            time.sleep(0.005)


Start = Callable[..., Command]


@pytest.fixture(scope="session")
def processes() -> Any:
    """Starts processes that have imported what a run needs."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sftkit.run.training", "sftkit.training.trainer", "sftkit.testing", __name__])
    return context


@pytest.fixture
def start(processes: Any, tmp_path: Path) -> Iterator[Start]:
    """Starts ``sftkit`` with the given arguments in a process; what still runs at the end is killed.

    Called with the arguments, ``cwd`` (the test's directory by default) and further variables ``env``. Variables that
    libraries read when they are imported have no effect: use the fixture ``cli`` for them.
    """
    started: list[Command] = []

    def run(*arguments: object, cwd: Path = tmp_path, env: dict[str, str] | None = None) -> Command:
        printed = tmp_path / f"printed-{len(started)}.txt"
        printed.touch()
        variables = {"COLUMNS": "200", **(env or {})}
        process = processes.Process(target=_main, args=([*map(str, arguments)], cwd, printed, variables))
        process.start()
        started.append(Command(process, printed))
        return started[-1]

    yield run
    for command in started:
        if command.process.is_alive():
            command.process.kill()
        command.process.join()


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
