"""Progress of a run: one live line in a terminal, plain lines in a log file or a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


def console() -> Console:
    """The console for progress and reports: standard output, without colours if that is not a terminal."""
    return Console(highlight=False, soft_wrap=True)


class Display:
    """Shows stages, steps and values; nothing if ``quiet``, as on every process but the first."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = console()
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._total, self._first, self._since = 0, 0, 0.0
        self.started = False

    def stage(self, text: str) -> None:
        """Show the stage that begins."""
        if not self.quiet:
            self.console.print(text, markup=False)

    def note(self, text: str) -> None:
        """Show a line about the run, above the live line if there is one."""
        if not self.quiet:
            (self._progress.console if self._progress else self.console).print(text, markup=False)

    def expect(self, total: int) -> None:
        """Set the number of steps."""
        self._total = total

    def start(self, completed: int = 0) -> None:
        """Start to count steps and time."""
        self.started, self._first, self._since = True, completed, time.monotonic()
        if self.quiet or not self.console.is_terminal:
            return
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[values]}"))
        above = sys.stderr.isatty()  # where warnings are printed, unless they go elsewhere than to the terminal
        remaining = (TextColumn("left"), TimeRemainingColumn())
        self._progress = Progress(*columns, *remaining, console=self.console, redirect_stderr=above)
        self._task = self._progress.add_task("training", total=self._total, completed=completed, values="")
        self._progress.start()

    def step(self, number: int) -> None:
        """Show that a step is done."""
        if self._progress:
            self._progress.update(self._task, completed=number)

    def values(self, step: int, logs: Mapping[str, Any]) -> None:
        """Show the values of a log entry."""
        if self.quiet:
            return
        if self._progress and "loss" in logs:
            self._progress.update(self._task, values=self._values(step, logs))
        elif self._progress:
            self._progress.console.print(self._line(step, logs), markup=False)
        else:
            self.console.print(self._line(step, logs), markup=False)

    def close(self) -> None:
        """End the progress: the training is over, or was interrupted."""
        if self._progress:
            self._progress.stop()
            self._progress = None

    def _rate(self, step: int) -> float:
        return (step - self._first) / max(time.monotonic() - self._since, 1e-9)

    def _values(self, step: int, logs: Mapping[str, Any]) -> str:
        rate = f"{self._rate(step):.2f} steps/s"
        return f"{rate} · {logs.get('tokens_per_second', 0):,.0f} tokens/s · loss {logs['loss']:.4f}"

    def _line(self, step: int, logs: Mapping[str, Any]) -> str:
        head = f"step {step}/{self._total}"
        if "loss" in logs:
            rate = self._rate(step)
            left = (self._total - step) / rate if rate > 0 else 0.0
            return f"{head} · {self._values(step, logs)} · {_clock(left)} left"
        hidden = ("_per_second", "_runtime", "_flos", "epoch")
        shown = [
            f"{key} {value:.4f}" if isinstance(value, float) else f"{key} {value}"
            for key, value in logs.items()
            if not key.endswith(hidden)
        ]
        return " · ".join([head, *shown])


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
