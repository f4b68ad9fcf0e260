"""A run of a sweep as a process of its own, whose memory is free when it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

STDERR = 2  # the descriptor of standard error
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Processes:
    """Starts runs, one after the other. As a context, it passes signals on to the run and waits for its end.

    Attributes:
        signal: the signal that ends the sweep; None if there was none.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._running: subprocess.Popen[bytes] | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Processes:
        self._before = {number: signal.signal(number, self._stop) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or number
        if self._running is not None and self._running.poll() is None:
            self._running.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    def run(self, config: Path, directory: Path, secrets: Mapping[str, str], quiet: bool) -> int:
        """Begin or continue a run, and wait for its end.

        Args:
            config: its configuration.
            directory: its run directory.
            secrets: variables that the configuration refers to.
            quiet: whether its output goes to standard error.

        Returns:
            Its exit code.
        """
        command = [sys.executable, "-m", "sftkit", "run", str(config), "--output", str(directory), "--resume", "auto"]
        # In a session of its own: Ctrl-C reaches it once, through this process.
        self._running = subprocess.Popen(
            command,
            env={**os.environ, **secrets},
            stdout=STDERR if quiet else None,  # also where sys.stderr is no file, as in a notebook
            start_new_session=True,
        )
        return self._running.wait()
