"""How much a command shows, and where: chosen by ``--quiet``, ``--verbose``, ``--log-level`` and ``--json``."""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Output:
    """What a command shows.

    Attributes:
        quiet: only errors and what the command is for, without progress, warnings and advice.
        verbose: also details, and the libraries' messages.
        json: standard output is for one JSON object; everything else goes to standard error.
        log_level: the least severe log lines to show; by default they follow from ``quiet`` and ``verbose``.
    """

    quiet: bool = False
    verbose: bool = False
    json: bool = False
    log_level: str = ""

    @property
    def own_level(self) -> int:
        """The log level of sftkit."""
        if self.log_level:
            return int(getattr(logging, self.log_level.upper()))
        return logging.ERROR if self.quiet else logging.DEBUG if self.verbose else logging.INFO

    @property
    def library_level(self) -> int:
        """The log level of the libraries."""
        if self.log_level:
            return self.own_level
        return logging.ERROR if self.quiet else logging.INFO if self.verbose else logging.WARNING


_current = Output()


def output() -> Output:
    """What the running command shows."""
    return _current


@contextmanager
def showing(chosen: Output) -> Iterator[None]:
    """Let everything in this process show what was chosen; threads too, which is why it is no context variable."""
    global _current
    before, _current = _current, chosen
    try:
        yield
    finally:
        _current = before


@contextmanager
def printing_json(chosen: bool = True) -> Iterator[None]:
    """Keep standard output for one JSON object: what is printed meanwhile goes to standard error.

    Args:
        chosen: whether the command has ``--json``; without it, nothing changes.
    """
    if not chosen:
        yield
        return
    with redirect_stdout(sys.stderr):
        yield


def show_json(value: Any) -> None:
    """Print a value as a JSON object on standard output, in one line."""
    print(json_text(value))  # noqa: T201


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON. Numbers that JSON does not have, such as NaN, are null; unknown objects are their text."""
    return json.dumps(_finite(value), indent=indent, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
