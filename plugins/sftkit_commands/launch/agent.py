"""torchrun in this process, whose exit code is that of the process that failed first.

torchrun itself exits with 1 whatever fails, ends its processes 30 seconds after a signal although they still save, and
starts them again if it may.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

from sftkit.api import ConfigError, Problem, TrainingError

logger = logging.getLogger("sftkit")

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))
OTHER = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
COPY_SECONDS = 5.0  # in which a signal that arrives again is a copy of the first, as in a run
#: sftkit's own exit codes.
CODES = (0, 1, 2, 3, 130, 143)


def run_alone(command: list[str]) -> int:
    """Run a command in one process that gets this one's signals; returns its exit code."""
    process = subprocess.Popen(command, start_new_session=True)
    before = _handle(lambda number, frame: process.send_signal(number))
    try:
        return exit_code(process.wait())
    finally:
        _restore(before)


def run_agent(arguments: list[str]) -> int:
    """Run torchrun with these arguments; returns the exit code of the first process that failed.

    Raises:
        ConfigError: if the nodes do not find each other.
        TrainingError: if a process was killed, or ended without a reason.
    """
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.run import parse_args, run

    if not logger.isEnabledFor(logging.DEBUG):
        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # sftkit reports what fails
    if leaves_signals():
        arguments = ["--signals-to-handle", "SIGQUIT", *arguments]
    before = _handle(_Workers().signalled)
    try:
        run(parse_args(arguments))
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        return _code_of(number, failure.exitcode)
    except SignalException as error:  # torch 2.9
        return 128 + error.sigval
    except (RendezvousError, DistError) as error:
        fix = "check that every node has started, with the same endpoint, and can reach its port"
        raise ConfigError(Problem(f"the nodes do not find each other: {error}", "--on local, endpoint", fix)) from None
    finally:
        _restore(before)
    return 0


def leaves_signals() -> bool:
    """Whether torchrun leaves signals to its caller if it is asked to; that of torch 2.9 handles them itself."""
    from torch.distributed.run import get_args_parser

    return "--signals-to-handle" in get_args_parser().format_help()


def _code_of(number: int, code: int) -> int:
    if code in CODES:
        return code
    what = f"process {number} ended with exit code {code}"
    fix = "look at its last lines"
    if code < 0:
        what = f"process {number} was killed by {signal.Signals(-code).name}"
        fix = "if the machine ran out of memory, its log says so; continue with --resume"
    raise TrainingError(Problem(what, "training", fix))


def exit_code(code: int) -> int:
    """The exit code as a shell shows it, of a process that a signal may have ended."""
    return code if code >= 0 else 128 - code


def _handle(handler: Callable[[int, FrameType | None], Any]) -> dict[int, Any]:
    return {number: signal.signal(number, handler) for number in (*ENDING, *OTHER)}


def _restore(before: dict[int, Any]) -> None:
    for number, handler in before.items():
        signal.signal(number, signal.SIG_DFL if handler is None else handler)


class _Workers:
    """The processes that the agent in this process has started.

    A signal is passed on to them. The agent is held until all have ended: it would kill those that still save, or start
    them again. A second signal kills them, also one that hangs.
    """

    def __init__(self) -> None:
        self._ending = 0.0  # since when

    def signalled(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal.

        Raises:
            SystemExit: when the workers have ended by it, with their exit code.
        """
        workers = self._processes()
        again = self._ending and number not in OTHER and time.monotonic() - self._ending > COPY_SECONDS
        for worker in workers:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL if again else number)
        if number in OTHER or self._ending:
            return
        self._ending = time.monotonic()
        codes = [_code_at_end(worker, number) for worker in workers]
        failed = [code for code in codes if code]
        if failed or not codes:
            sys.exit(exit_code(failed[0]) if failed else 128 + number)

    @staticmethod
    def _processes() -> list[int]:
        import psutil

        found = []
        for process in psutil.Process().children():
            with suppress(psutil.Error):
                if "TORCHELASTIC_RUN_ID" in process.environ():
                    found.append(process.pid)
        return found


def _code_at_end(worker: int, number: int) -> int:
    """Wait for the end of a worker after a signal; the agent can still ask for its exit code."""
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        import psutil

        with suppress(psutil.Error):
            while psutil.Process(worker).status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.1)
        return 128 + number
    try:
        ended = os.waitid(os.P_PID, worker, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:  # the agent has asked already
        return 0
    if ended is None or ended.si_code == os.CLD_EXITED:
        return 0 if ended is None else ended.si_status
    return -ended.si_status
