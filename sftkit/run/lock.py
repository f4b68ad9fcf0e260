"""The lock of a run directory: one run at a time, on this machine and on those that share its file system."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sftkit.errors import Problem, RunError

logger = logging.getLogger("sftkit")

LOCK = ".run.lock"
BEAT = 5.0  # seconds between the signs of life of a run
SILENCE = 20.0  # seconds without one after which a run on another machine is gone
CHILDREN = 10.0  # seconds in which the data workers of a killed run end; they inherit its lock


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the lock of a directory, which is made if it does not exist.

    The system releases the lock of a process that ends, however it ends. Where file locks do not reach other machines,
    the sign of life that a run leaves in its lock file every few seconds shows that it goes on. At the end the lock
    file is removed, and so are the directories that were made here and are still empty.

    Raises:
        RunError: if another run holds the lock, or the directory cannot be written to.
    """
    made = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        file = _acquire(directory / LOCK)
    except OSError as error:
        _remove_empty(made)
        what = f"the directory cannot be used: {error.strerror or error}"
        raise RunError(Problem(what, str(directory), "choose another --output DIR")) from error
    ended, process, inherited = threading.Event(), os.getpid(), [file]
    if hasattr(os, "register_at_fork"):  # data workers must not keep the lock of a run that was killed
        os.register_at_fork(after_in_child=lambda: os.close(inherited.pop()) if inherited else None)
    beating = threading.Thread(target=_beat, args=(file, ended), name="sftkit-run-lock", daemon=True)
    beating.start()
    try:
        yield
    finally:
        if os.getpid() == process:  # and not a forked child's
            inherited.clear()
            ended.set()
            beating.join()
            _release(directory / LOCK, file)
            _remove_empty(made)


def holder(directory: Path) -> str | None:
    """Who holds the lock of a directory, for people; None if nobody does, or it cannot be known. Does not wait."""
    from filelock import lock_descriptor

    try:
        file = os.open(directory / LOCK, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return None
    try:
        held = not lock_descriptor(file, blocking=False)
    except OSError:
        held = False
    finally:
        os.close(file)
    known = _read(directory / LOCK)
    return _described(known) if held and known else None


def _acquire(path: Path) -> int:
    """The descriptor of the locked file, with this process in it.

    Raises:
        RunError: if another run holds the lock.
        OSError: if the file cannot be written, or its file system has no locks.
    """
    import psutil
    from filelock import lock_descriptor

    deadline = time.monotonic() + CHILDREN
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        except FileNotFoundError:
            if path.parent.is_dir() or time.monotonic() > deadline:
                raise
            continue  # a run that had made the directory has failed, and removed it
        try:
            owned, known = lock_descriptor(file, blocking=False), _read(path)
            if owned and _is_at(path, file):  # and not at one that its holder has removed since
                if known and known["host"] != socket.gethostname() and _lives(path):
                    raise _refusal(path, known)
                if known:
                    logger.warning("%s did not end in order: its lock is taken over", _described(known))
                _write(file)
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)
        here = known is not None and known["host"] == socket.gethostname()
        gone = known is not None and here and not psutil.pid_exists(known["process"])
        if not owned and (not (gone or known is None) or time.monotonic() > deadline):
            raise _refusal(path, known)
        time.sleep(0.05)


def _refusal(path: Path, known: dict[str, Any] | None) -> RunError:
    who = _described(known) if known else "another process"
    fix = f"wait for its end, stop it, or choose another --output DIR; if no such process exists, remove {path}"
    return RunError(Problem(f"{who} is running in this directory", str(path.parent), fix))


def _is_at(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _lives(path: Path) -> bool:
    """Whether a run on another machine still gives signs of life; waits for one, since clocks may differ."""
    before, deadline = path.stat().st_mtime_ns, time.monotonic() + SILENCE
    logger.warning("%s is from another machine: waiting %.0f s for a sign of life", path, SILENCE)
    while time.monotonic() < deadline:
        time.sleep(min(1.0, SILENCE / 10))
        with path.open("rb") as opened:  # a network file system asks its server when a file is opened
            if os.fstat(opened.fileno()).st_mtime_ns != before:
                return True
    return False


def _beat(file: int, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with suppress(OSError):
            os.utime(file)


def _write(file: int) -> None:
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    text = json.dumps({"host": socket.gethostname(), "process": os.getpid(), "started": now})
    os.ftruncate(file, 0)
    os.pwrite(file, text.encode(), 0) if hasattr(os, "pwrite") else os.write(file, text.encode())
    os.fsync(file)


def _read(path: Path) -> dict[str, Any] | None:
    """Who is in a lock file; None if nobody is, or it cannot be read."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return {"host": str(known["host"]), "process": int(known["process"]), "started": str(known["started"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _described(known: dict[str, Any]) -> str:
    return f"process {known['process']} on {known['host']}, started {known['started']},"


def _release(path: Path, file: int) -> None:
    with suppress(OSError):
        if _is_at(path, file):
            path.unlink()
    os.close(file)


def _remove_empty(made: list[Path]) -> None:
    for path in made:
        with suppress(OSError):
            path.rmdir()
