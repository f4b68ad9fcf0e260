"""Runs each measurement in a process of its own, which is ended when its time is over."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import forkserver, get_context
from pathlib import Path
from typing import Any

from gpu import child

GRACE = 5.0  # seconds for a fork to begin


class Jobs:
    """Starts children: forks of a process that has imported everything, or fresh ones.

    A fork saves the imports of every setting (`preload`); a setting that needs to change transformers while it is
    imported asks for a fresh process.

    Args:
        scratch: for the children's files.
        forks: whether to use forks.
    """

    def __init__(self, scratch: Path, forks: bool = True) -> None:
        self._scratch = scratch
        self.forks = forks
        if forks:
            forkserver.set_forkserver_preload(["gpu.preload"])
            with _stderr_in(scratch / "preload.txt"):  # where what it imports may print, at its end too
                forkserver.ensure_running()  # it imports while something else is done

    def run(self, job: str, values: dict[str, Any], seconds: float, fresh: bool = False) -> dict[str, Any]:
        """The result of a job: at least its ``status``, and the ``reason`` where that is ``failed``."""
        directory = Path(tempfile.mkdtemp(prefix=f"{job}-", dir=self._scratch))
        values = {name: _in(directory, value) for name, value in values.items()}
        context = get_context("forkserver" if self.forks and not fresh else "spawn")
        process = context.Process(target=child.main, args=(job, values, str(directory)))
        started = time.monotonic()
        try:
            with _alarm(seconds + GRACE):
                process.start()
                process.join(max(0.0, seconds - (time.monotonic() - started)))
        except TimeoutError:
            pass
        finally:
            _end(process)
        found = _result(directory, process.exitcode, seconds, time.monotonic() - started)
        shutil.rmtree(directory, ignore_errors=True)  # a child that starts too late finds no place, and ends
        return found


def _in(directory: Path, value: Any) -> Any:
    """A specification with the directory of its job."""
    if hasattr(value, "directory"):
        value.directory = str(directory)
    return value


def _result(directory: Path, code: int | None, limit: float, took: float) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        return json.loads((directory / "result.json").read_text(encoding="utf-8"))
    log = directory / "log.txt"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    late = took >= limit
    reason = f"not done within {limit:.0f} s" if late else f"ended with exit code {code}"
    found = {"status": "failed", "reason": reason, "trace": lines[-child.TRACE_LINES :], "seconds": round(took, 1)}
    return {**found, "timed_out": True} if late else found


def _end(process: Any) -> None:
    """End a child with everything that it has started."""
    if process.pid is None:
        return
    for end in (os.killpg, os.kill):  # its group, or itself where it has not made one yet
        with contextlib.suppress(ProcessLookupError, PermissionError):
            end(process.pid, signal.SIGKILL)
            break
    process.join(GRACE)


@contextlib.contextmanager
def _stderr_in(path: Path) -> Iterator[None]:
    """Processes that are started inside write their errors to a file."""
    kept = os.dup(2)
    with path.open("wb") as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the main thread after some seconds, even where it waits for another process to start."""

    def ring(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
