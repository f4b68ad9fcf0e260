"""The real command in real processes that start quickly: each is forked from one that has imported torch already."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from types import TracebackType
from typing import Any

PRELOADED = ("sftkit.run.training", "sftkit.training.trainer", "sftkit.testing")
WAIT = 120  # seconds after which a process hangs


def warm_processes(*modules: str, now: bool = False) -> Any:
    """A multiprocessing context whose processes have imported what a run needs, and further ``modules``.

    Args:
        modules: names of modules.
        now: whether the imports begin now, and not with the first process.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, __name__, *modules])
    if now:
        forkserver.ensure_running()
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


@dataclass
class Group:
    """The processes of one run. As a context, it kills what still runs at its end.

    Attributes:
        commands: the commands, by rank.
    """

    commands: list[Command]

    def __enter__(self) -> Group:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()

    @property
    def outputs(self) -> list[str]:
        """What each has printed so far, by rank."""
        return [command.output for command in self.commands]

    def wait(self, seconds: float = WAIT) -> list[int]:
        """The exit codes, by rank, when all have ended; those of processes that a signal ended are negative.

        Raises:
            AssertionError: if one still runs after this time; all are killed then.
        """
        deadline = time.monotonic() + seconds
        try:
            return [command.wait(max(deadline - time.monotonic(), 0)) for command in self.commands]
        except AssertionError as error:
            raise AssertionError("\n".join(self.outputs)) from error
        finally:
            self.end()

    def end(self) -> None:
        """Kill those that still run."""
        for command in self.commands:
            command.end()


def start_group(
    context: Any,
    arguments: Sequence[str],
    size: int = 2,
    *,
    cwd: Path | Sequence[Path],
    printed: Path,
    env: Mapping[str, str] | None = None,
) -> Group:
    """Start ``sftkit`` with these arguments in several processes, with the variables that torchrun sets for one run.

    For gloo, give ``train.use_cpu=true`` among the arguments.

    Args:
        context: from `warm_processes`.
        arguments: those of the command line.
        size: how many processes.
        cwd: the directory to run in; or one for each of several nodes, which have equal shares of the processes.
        printed: a directory for what they print, which is made.
        env: further variables of all processes.

    Examples:
        >>> group = start_group(warm_processes(), ["run", "train.use_cpu=true"], cwd=path)  # doctest: +SKIP
        >>> assert group.wait() == [0, 0], group.outputs  # doctest: +SKIP
    """
    places = [cwd] if isinstance(cwd, Path) else [*cwd]
    local = size // len(places)
    shared = {"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": local, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    printed.mkdir(parents=True, exist_ok=True)
    group = Group([])
    for rank in range(size):
        numbers = {**shared, "RANK": rank, "LOCAL_RANK": rank % local, "GROUP_RANK": rank // local}
        variables = {**{name: str(number) for name, number in numbers.items()}, **(env or {})}
        files = {"cwd": places[rank // local], "printed": printed / f"{rank}.txt"}
        group.commands.append(start_command(context, [*arguments], env=variables, **files))
    return group


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


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
