"""A pytest plugin that writes each outcome to a file when it is known: a run that is cut off keeps what it has.

`SFTKIT_GPU_LOG` names the file: a JSON object a line, with ``collected`` (the tests that will run) or with one phase of
a test. `SFTKIT_GPU_PASSED` names a file with tests that are left out, a JSON list.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

TRACE_LINES = 30


def bare(name: str) -> str:
    """A test's id without the group that pytest-xdist appends."""
    return re.sub(r"@[^@\]]*$", "", name)


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Leave out what has passed before; in each worker, as all have to agree."""
    path = os.environ.get("SFTKIT_GPU_PASSED")
    if path is None:
        return
    passed = set(json.loads(Path(path).read_text(encoding="utf-8")))
    left_out = [item for item in items if bare(item.nodeid) in passed]
    items[:] = [item for item in items if bare(item.nodeid) not in passed]
    config.hook.pytest_deselected(items=left_out)


def pytest_configure(config: Any) -> None:
    """Log in the process that gathers the outcomes."""
    if not hasattr(config, "workerinput") and (path := os.environ.get("SFTKIT_GPU_LOG")):
        config.pluginmanager.register(Log(Path(path)))


class Log:
    """Writes the file."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def _write(self, **values: Any) -> None:
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()

    def pytest_collection_finish(self, session: Any) -> None:
        """Without pytest-xdist, the tests that will run."""
        if session.items:
            self._write(collected=[item.nodeid for item in session.items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        """With it, the tests that a worker found, which are those of every worker."""
        self._write(collected=[bare(name) for name in ids])

    def pytest_collectreport(self, report: Any) -> None:
        """A file that cannot be collected counts as a test with an error."""
        if report.failed:
            self._write(id=report.nodeid, when="collect", outcome="failed", seconds=0.0, text=_last(report))

    def pytest_runtest_logreport(self, report: Any) -> None:
        """A phase of a test: setup, call or teardown."""
        text = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else _last(report)
        values = {"when": report.when, "outcome": report.outcome, "seconds": round(report.duration, 2)}
        self._write(id=bare(report.nodeid), **values, text=text, values=dict(report.user_properties))


def _last(report: Any) -> str:
    return "\n".join(str(report.longrepr or "").splitlines()[-TRACE_LINES:])
