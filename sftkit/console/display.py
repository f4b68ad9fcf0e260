"""Progress of a training: one live line in a terminal, and a line for each log entry."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sftkit.console.names import clock, metric_name, metric_value
from sftkit.console.output import output
from sftkit.console.screen import console, end_live, is_live, show_live, stage
from sftkit.console.text import fitting

#: Parts of a training's log entry that have a place of their own, or none.
_PLACED = {"loss", "learning_rate", "grad_norm", "skipped_steps"}
_HIDDEN = (
    "_per_second",
    "_runtime",
    "_flos",
    "_seconds",
    "epoch",
    "train_loss",
    "memory",
    "saves",
    "save_share",
)
_TOTALS = ("trained_tokens", "trained_weight")  # also by source
NARROWEST_BAR, WIDEST_BAR = 8, 40


class Display:
    """Shows stages, steps and values; nothing if ``quiet``, as on every process but the first, or with ``--quiet``.

    Attributes:
        first: whether this is the process that shows and writes what all have in common.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.first, self.quiet = not quiet, quiet or output().quiet
        self.started = False
        self._total, self._first, self._since = 0, 0, 0.0
        self._step, self._values, self._evaluating = 0, dict[str, Any](), ""

    @property
    def console(self) -> Console:
        """Where the display prints."""
        return console()

    def stage(self, text: str) -> None:
        """Show the stage that begins."""
        if not self.quiet:
            stage(text)

    def note(self, text: str) -> None:
        """Show a line about the run, above the live line if there is one."""
        if not self.quiet:
            self.console.print(text, markup=False)

    def expect(self, total: int) -> None:
        """Set the number of steps."""
        self._total = total

    def start(self, completed: int = 0) -> None:
        """Start to count steps and time."""
        self.started, self._first, self._since, self._step = True, completed, time.monotonic(), completed
        if not self.quiet:
            show_live(self)

    def step(self, number: int) -> None:
        """Show that a step is done."""
        self._step = number

    def evaluating(self, done: int, total: int | None = None) -> None:
        """Show how many batches of an evaluation are done."""
        self._evaluating = f"evaluating {done:,}/{total:,}" if total else f"evaluating {done:,}"
        if not self.started and is_live():
            self.stage(self._evaluating)

    def values(self, step: int, logs: Mapping[str, Any]) -> None:
        """Show the values of a log entry, in a line that stays."""
        self._evaluating = ""
        if "loss" in logs:
            self._step, self._values = step, dict(logs)
        if self.quiet:
            return
        screen = self.console
        head = (0, f"step {step:>{len(str(self._total))}}/{self._total}")
        parts = [head, *(self._trained() if "loss" in logs else _others(logs))]
        if len(parts) > 1:
            line = fitting(parts, screen.width) if screen.is_terminal else " · ".join(text for _, text in parts)
            screen.print(line, markup=False, overflow="ignore", crop=False)

    def close(self) -> None:
        """End the progress: the training is over, or was interrupted."""
        if not self.quiet:
            end_live()

    def __rich_console__(self, screen: Console, options: ConsoleOptions) -> RenderResult:
        """The live line: as much as fits, and a bar in the room that is left."""
        width = options.max_width - 2  # for the ^C that a terminal writes
        parts = [(0, f"step {self._step}/{self._total}"), *self._trained(width < 90)]
        if self._evaluating:
            parts.insert(1, (1, self._evaluating))
        text = fitting(parts, width - (WIDEST_BAR // 2 if width >= 90 else 0))
        room = min(width - len(text) - 1, WIDEST_BAR)
        if room < NARROWEST_BAR:
            yield Text(text, no_wrap=True, overflow="crop")
            return
        line = Table.grid(padding=(0, 1, 0, 0))
        line.add_column(width=room, no_wrap=True)
        line.add_column(no_wrap=True, overflow="crop")
        line.add_row(ProgressBar(max(self._total, 1), self._step, width=room), text)
        yield line

    def _trained(self, short: bool = False) -> list[tuple[int, str]]:
        """Loss, speed and remaining time, each with its rank; then what only wide lines show."""
        logs, rate = self._values, (self._step - self._first) / max(time.monotonic() - self._since, 1e-9)
        parts = [(1, f"loss {metric_value('loss', logs['loss'])}")] if "loss" in logs else []
        speed = logs.get("tokens_per_second")
        if speed:
            parts.append((3, f"{speed:,.0f} {'tok/s' if short else 'tokens/s'}"))
        if rate > 0:
            shown = f"{rate:.2f} steps/s" if rate >= 0.1 else f"{1 / rate:.1f} s/step"
            parts += [(4 if speed else 3, shown), (2, f"{clock((self._total - self._step) / rate)} left")]
        if logs.get("skipped_steps"):
            parts.append((2, f"{logs['skipped_steps']:,} steps skipped"))
        for name in ("learning_rate", "grad_norm"):
            if isinstance(value := logs.get(name), int | float):
                parts.append((5, f"{metric_name(name)} {value:.3g}"))
        if logs.get("epoch"):
            parts.append((6, f"epoch {logs['epoch']:.2f}"))
        return [*parts, *((rank + 6, text) for rank, text in _others(logs))]


def _others(logs: Mapping[str, Any]) -> list[tuple[int, str]]:
    """All other values; the mean loss of the training is among the results, and not one of its last step."""
    shown = [name for name in logs if not name.endswith(_HIDDEN) and not name.startswith(_TOTALS)]
    shown = [name for name in shown if name not in _PLACED]
    parts, evaluated = [], False
    for rank, name in enumerate(shown, 1):  # "eval" once: what the user asked for is at the end of the line
        known = name.removeprefix("eval_") if evaluated else name
        parts.append((rank, f"{metric_name(known)} {metric_value(name, logs[name])}"))
        evaluated = evaluated or name.startswith("eval_")
    return parts
