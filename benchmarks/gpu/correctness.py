"""Runs the tests marked ``gpu`` within a time, and keeps the outcomes of those that ended."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

NOT_REACHED = "not reached"
BAD = ("failed", "error", NOT_REACHED)
WORKERS = 4


def run(
    tests: Path, scratch: Path, seconds: float, toy: bool, passed: Iterable[str], news: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Run the tests.

    Args:
        tests: their directory, ``tests/gpu`` of a checkout.
        scratch: for the log.
        seconds: after which they are ended.
        toy: whether they run on a CPU.
        passed: tests that are left out.
        news: called with the outcomes by test whenever there are more.

    Returns:
        The outcomes by test: ``outcome``, ``seconds``, for those that did not pass a ``reason``, and ``values`` that a
        test has recorded with pytest's ``record_property``.
    """
    log, left_out, output = scratch / "tests.jsonl", scratch / "passed.json", scratch / "pytest.txt"
    left_out.write_text(json.dumps(sorted(passed)), encoding="utf-8")
    variables = {**os.environ, "SFTKIT_GPU_LOG": str(log), "SFTKIT_GPU_PASSED": str(left_out)}
    variables |= {"SFTKIT_GPU_TOY": "1"} if toy else {}
    root = tests.parents[1]
    command = [sys.executable, "-m", "pytest", str(tests.relative_to(root)), "-m", "gpu", "-q"]
    command += ["-p", f"{__package__}.testlog", "-n", str(WORKERS), "--dist", "loadgroup"]
    end, known = time.monotonic() + seconds, 0
    with output.open("w", encoding="utf-8") as stream:
        process = subprocess.Popen(
            command,
            cwd=root,
            env=variables,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )
        try:
            while process.poll() is None and time.monotonic() < end:
                time.sleep(0.2)
                if log.is_file() and (size := log.stat().st_size) > known:
                    known = size
                    news(outcomes(log))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
    found = outcomes(log)
    lines = output.read_text(encoding="utf-8", errors="replace").splitlines()
    nothing_left = code == 5 and left_out.stat().st_size > 2
    if (code > 1 and not nothing_left) or (code == 1 and not found):
        reason = f"pytest ended with exit code {code}"
        found["pytest"] = {"outcome": "error", "seconds": 0.0, "reason": reason, "trace": lines[-30:]}
    return found


def outcomes(log: Path) -> dict[str, Any]:
    """The outcome of each test, from the log of `testlog`."""
    found: dict[str, dict[str, Any]] = {}
    for line in log.read_text(encoding="utf-8").splitlines() if log.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:  # the last line of a run that was cut off
            continue
        for name in entry.get("collected", ()):
            found.setdefault(name, {"outcome": NOT_REACHED, "seconds": 0.0})
        if "id" in entry:
            _add(found.setdefault(entry["id"], {"outcome": NOT_REACHED, "seconds": 0.0}), entry)
    return found


def _add(test: dict[str, Any], phase: dict[str, Any]) -> None:
    test["seconds"] = round(test["seconds"] + phase["seconds"], 2)
    if phase.get("values"):
        test["values"] = phase["values"]
    if phase["outcome"] == "failed":
        test["outcome"] = "failed" if phase["when"] == "call" else "error"
    elif test["outcome"] in BAD[:2]:
        return
    elif phase["outcome"] == "skipped" or phase["when"] == "call":
        test["outcome"] = phase["outcome"]
    if phase["outcome"] != "passed":
        lines = [line for line in phase["text"].splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("E ")]
        test["reason"] = (errors or lines or [""])[-1].removeprefix("E").strip().removeprefix("Skipped: ")[:300]
        test["trace"] = lines[-30:]


def _end_with_parent() -> None:
    """Let the kernel end this process when its parent is gone; elsewhere than on Linux nothing does."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").prctl(1, signal.SIGKILL)
