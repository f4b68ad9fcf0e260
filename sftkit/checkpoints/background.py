"""Writes that go on while the training does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any


class Background:
    """Runs one task at a time in a thread. An error in it is raised by `check` or `wait`, once.

    Attributes:
        seconds: how long the last task took; None before one has ended.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.seconds: float | None = None

    @property
    def busy(self) -> bool:
        """Whether a task is running."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, task: Callable[[], Any]) -> None:
        """Wait for the previous task, and start this one.

        Raises:
            BaseException: what the previous task raised.
        """
        self.wait()

        def run() -> None:
            began = time.perf_counter()
            try:
                task()
            except BaseException as error:  # raised in the thread that asked for it
                self._error = error
            self.seconds = time.perf_counter() - began

        # Not a daemon: the interpreter waits for it, so that no exit cuts a save in two.
        self._thread = threading.Thread(target=run, name="sftkit-save")
        self._thread.start()

    def check(self) -> None:
        """Raise what the last task raised, if it has ended.

        Raises:
            BaseException: of the task.
        """
        if not self.busy:
            self.wait()

    def wait(self) -> None:
        """Wait for the task, and raise what it raised.

        Raises:
            BaseException: of the task.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error
