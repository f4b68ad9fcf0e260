"""The real command in real processes that start quickly: each is forked from one that has imported torch already."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PRELOADED = ("sftkit.run.training", "sftkit.training.trainer", "sftkit.testing")
WAIT = 120  # seconds after which a process hangs


def warm_processes(*modules: str) -> Any:
    """A multiprocessing context whose processes have imported what a run needs, and further ``modules``."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, __name__, *modules])
    return context


@dataclass
class Command:
    """A command that runs in a process.

    Attributes:
        process: the process.
        printed: the file with what it prints.
    """

    process: Any
    printed: Path

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.printed.read_text(encoding="utf-8", errors="replace")

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.exitcode is None

    def send(self, signal: int) -> None:
        """Send a signal to the process."""
        os.kill(self.process.pid, signal)

    def wait(self, seconds: float = WAIT) -> int:
        """The exit code; that of a process that a signal ended is negative.

        Raises:
            AssertionError: if it still runs after this time.
        """
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"the command hangs\n{self.output}"
        return int(self.process.exitcode)

    def wait_until(self, condition: Callable[[], Any]) -> None:
        """Wait for a condition, such as a file that the command writes, while it runs.

        Raises:
            AssertionError: if the command ends before, or the condition is not met after two minutes.
        """
        deadline = time.monotonic() + WAIT
        while not condition():
            assert self.running, f"it ended with exit code {self.process.exitcode}\n{self.output}"
            assert time.monotonic() < deadline, f"the condition is not met\n{self.output}"
            time.sleep(0.005)

    def end(self) -> None:
        """Kill it if it still runs."""
        if self.process.is_alive():
            self.process.kill()
        self.process.join()


def start_command(
    context: Any,
    arguments: list[str],
    *,
    cwd: Path,
    printed: Path,
    errors: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Command:
    """Start ``sftkit`` with these arguments.

    Args:
        context: from `warm_processes`.
        arguments: those of the command line.
        cwd: the directory to run in.
        printed: a file for what it prints.
        errors: a file for its standard error, if that is kept apart.
        env: further variables; those that libraries read when they are imported have no effect.
    """
    printed.touch()
    variables = {"COLUMNS": "200", **(env or {})}
    process = context.Process(target=_main, args=(arguments, cwd, printed, errors or printed, variables))
    process.start()
    return Command(process, printed)


def _main(arguments: list[str], directory: Path, printed: Path, errors: Path, variables: dict[str, str]) -> None:
    """The command line, in a process group of its own, with what it prints in files."""
    os.setsid()
    os.chdir(directory)
    os.environ.update(variables)
    for number, path in ((1, printed), (2, errors)):
        with path.open("ab", buffering=0) as file:
            os.dup2(file.fileno(), number)
    sys.argv = ["sftkit", *arguments]
    from sftkit.cli import main

    main()
