"""What ends a run early, or asks it to save: signals and the deadline."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from sftkit.errors import Interrupted
from sftkit.ranks import is_main_process

if TYPE_CHECKING:
    from sftkit.config.models import RunSection

#: A signal that arrives again so soon is a copy: torchrun forwards what Slurm or a terminal sends to all processes.
COPY_SECONDS = 5.0


#: Those that are entered now.
_entered: list[Interruption] = []
#: Whether Ctrl-C came inside `remembering_interrupts`.
_remembered: list[bool] = []


@contextmanager
def remembering_interrupts() -> Iterator[None]:
    """Ctrl-C raises `KeyboardInterrupt` inside, as usual, and the next run ends if something has swallowed it.

    Libraries that are being imported may catch everything, and what a destructor raises is only printed. Nothing is
    different if Ctrl-C is handled already, or outside of the main thread.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        _remembered.append(True)
        raise KeyboardInterrupt

    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    _remembered.clear()
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _remembered.clear()


def interrupt_runs(number: int) -> None:
    """Ask the runs of this process to stop after the step, as a signal would, which reaches only the main thread's.

    A run that is not training yet stops after its first step.

    Args:
        number: of the signal, which gives the exit code.
    """
    for interruption in _entered:
        interruption.signal, interruption.at = number, time.monotonic()


class Interruption:
    """Turns SIGTERM and SIGINT into requests while the run can be saved, and into `Interrupted` before.

    A second signal ends the process at once. SIGUSR1 asks for a checkpoint. Signals are handled inside the context, and
    only if that is entered in the main thread, since Python allows it nowhere else.

    Args:
        settings: the section ``run``.

    Attributes:
        deferring: whether a signal waits for the end of the step.
        signal: the signal that asks the run to stop; None if there is none.
        at: when it came, by `time.monotonic`.
        save: whether a signal asks for a checkpoint.
    """

    def __init__(self, settings: RunSection | None = None) -> None:
        self._settings = settings
        self._began = time.monotonic()
        self._before: dict[int, Any] = {}
        self.at = 0.0
        self.deferring = False
        self.signal: int | None = None
        self.save = False

    def __enter__(self) -> Interruption:
        """Raises:
        KeyboardInterrupt: if Ctrl-C has come before, and did not end the process.
        """
        if _remembered:
            raise KeyboardInterrupt
        _entered.append(self)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._stop)
            if hasattr(signal, "SIGUSR1"):  # not on Windows
                self._before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._ask_to_save)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _entered.remove(self)
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def configure(self, settings: RunSection) -> None:
        """Set the section ``run``, which is known only when the configuration has been checked."""
        self._settings = settings

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            if "TORCHELASTIC_RUN_ID" in os.environ and time.monotonic() - self.at < COPY_SECONDS:
                return
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        name = signal.Signals(number).name
        self.signal, self.at = number, time.monotonic()
        if not self.deferring:
            raise Interrupted(f"{name}, before the training", 128 + number)
        # torchrun sends it to all, also after an error.
        if is_main_process() or "TORCHELASTIC_RUN_ID" not in os.environ:
            _say(f"{name}: saving after this step; a second one stops at once")

    def _ask_to_save(self, number: int, frame: FrameType | None) -> None:
        if not self.deferring:
            _say("SIGUSR1: there is nothing to save yet")
            return
        self.save = True

    def overdue(self, save_seconds: float) -> bool:
        """Whether a save that takes so long would end after ``run.max_time``."""
        limit = self._settings.max_time if self._settings else None
        return limit is not None and time.monotonic() - self._began + save_seconds >= limit

    def time_to_save(self, save_seconds: float) -> bool:
        """Whether a save that takes so long ends within ``run.grace``; always, if the run stops at its deadline."""
        grace = self._settings.grace if self._settings else None
        return grace is None or self.signal is None or time.monotonic() - self.at + save_seconds <= grace


def _say(text: str) -> None:
    """Write a line to standard error, in a signal handler, where buffered files may be in use."""
    above = "\r\x1b[2K" if os.isatty(2) else "\n"  # a live line is drawn again below the text
    os.write(2, f"{above}{text}\n".encode())
