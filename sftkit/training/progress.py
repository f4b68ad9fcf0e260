"""Progress of the training: a live line in a terminal, plain lines elsewhere, and the file ``log.jsonl``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sftkit.console import Display

SAVE_TIMES = {"save_seconds", "save_background_seconds"}


class ProgressCallback(TrainerCallback):
    """Shows steps, rate, tokens/s, loss and remaining time, and writes each log entry as a line of JSON.

    Args:
        display: shows the progress.
        log: path of ``log.jsonl``; None to write no log.
    """

    def __init__(self, display: Display, log: Path | None = None) -> None:
        self.display, self.log, self._evaluated = display, log, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Sets the number of steps."""
        self.display.expect(state.max_steps)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Starts the progress at the first step."""
        if state.is_world_process_zero and not self.display.started:
            self.display.start(completed=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Advances the progress by a step."""
        if state.is_world_process_zero:
            self.display.step(state.global_step)

    def on_prediction_step(self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **_: Any) -> None:
        """Shows which batch of an evaluation is done."""
        self._evaluated += 1
        if state.is_world_process_zero:
            total = len(eval_dataloader) if hasattr(eval_dataloader, "__len__") else None
            self.display.evaluating(self._evaluated, total)

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ends the progress of an evaluation."""
        self._evaluated = 0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Shows and writes the values."""
        if not state.is_world_process_zero or not logs:
            return
        self._write({"step": state.global_step, "time": round(time.time(), 3), **logs})
        if not logs.keys() <= SAVE_TIMES:  # they are for the file: a line for each save would bury the losses
            self.display.values(state.global_step, logs)

    def note(self, text: str, step: int) -> None:
        """Show a line about the run, and write it.

        Args:
            text: the line.
            step: the step that it is about.
        """
        if not self.display.first:  # another process shows and writes it
            return
        self.display.note(text)
        self._write({"step": step, "time": round(time.time(), 3), "note": text})

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ends the progress."""
        if state.is_world_process_zero:
            self.display.close()

    def _write(self, entry: dict[str, Any]) -> None:
        if self.log is not None:
            with self.log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
