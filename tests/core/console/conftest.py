"""A terminal for what the console prints: the bytes that it gets, and the lines that it shows."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable

import pyte
import pytest
from rich.console import Console


class Tty(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


class Terminal:
    """A terminal of some width; standard output and standard error are written to it."""

    def __init__(self, width: int) -> None:
        self.width, self.stream = width, Tty()

    @property
    def screen(self) -> pyte.Screen:
        """What is shown now, in a terminal that is high enough for everything."""
        screen = pyte.Screen(self.width, 200)
        pyte.Stream(screen).feed(self.stream.getvalue().replace("\n", "\r\n"))
        return screen

    @property
    def lines(self) -> list[str]:
        """The lines that are shown, without empty ones at the end."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip().split("\n")

    @property
    def written(self) -> list[str]:
        """The lines as they were written, before the terminal breaks those that are too long."""
        screen = pyte.Screen(1000, 200)
        pyte.Stream(screen).feed(self.stream.getvalue().replace("\n", "\r\n"))
        return "\n".join(line.rstrip() for line in screen.display).rstrip().split("\n")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Terminal]:
    """Makes this process one that runs in a terminal of a width."""

    def make(width: int) -> Terminal:
        made = Terminal(width)
        for name, value in {"COLUMNS": str(width), "LINES": "40", "TERM": "xterm-256color"}.items():
            monkeypatch.setenv(name, value)
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_INTERACTIVE", "TTY_COMPATIBLE", "COLORTERM"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(Console, "_environ", os.environ)  # datasets replaces that object in `map(num_proc=2)`
        monkeypatch.setattr(sys, "stdout", made.stream)
        monkeypatch.setattr(sys, "stderr", made.stream)
        return made

    return make
