"""What the process that launches a run on Ray, its workers and Ray Train's controller share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import ray.train

from sftkit.api import SftkitError


class RunEnded(Exception):  # noqa: N818 (it may be no error)
    """The run has ended for a reason that another start would not change."""


class Channel:
    """What the launching process and the workers exchange; as a Ray actor.

    Attributes:
        starts: how often the workers have started.
        begun: whether the run was loaded in an earlier start, so that its directory is its own.
        training: whether its steps have begun.
    """

    def __init__(self) -> None:
        self.starts, self.begun, self.training = 0, False, False
        self._printed: list[tuple[str, str]] = []
        self._errors: list[tuple[int, bool, BaseException | str]] = []
        self._signal: int | None = None

    def write(self, stream: str, text: str) -> None:
        """Keep what was printed to ``stdout`` or ``stderr`` until it is read."""
        self._printed.append((stream, text))

    def read(self) -> tuple[list[tuple[str, str]], int, bool, bool]:
        """What was printed since the last call; the number of starts, and whether the run has begun, and trains."""
        printed, self._printed = self._printed, []
        return printed, self.starts, self.begun, self.training

    def start(self) -> bool:
        """Count a start of the workers; returns whether the run had begun before."""
        self.starts, self.training = self.starts + 1, False
        self._errors = []
        return self.begun

    def loaded(self) -> None:
        """The run is about to begin in its directory."""
        self.begun = True

    def trains(self) -> None:
        """The run has begun its steps."""
        self.begun = self.training = True

    def fail(self, number: int, final: bool, error: BaseException | str) -> None:
        """Keep the error of a worker, or its traceback.

        Args:
            number: the rank of the worker.
            final: whether another start would not change it.
            error: what the launching process raises, or prints.
        """
        self._errors.append((number, final, error))

    def errors(self) -> list[tuple[int, bool, BaseException | str]]:
        """The errors since the last start, those that are final first."""
        return sorted(self._errors, key=lambda kept: not kept[1])

    def stop(self, number: int) -> None:
        """Ask the run to stop, as this signal would."""
        self._signal = number

    def signal(self) -> int | None:
        """The signal that asks the run to stop; None if there was none."""
        return self._signal


class Restarts(ray.train.UserCallback):
    """Says that workers are started again; ends the run instead, if that would not help.

    Args:
        channel: the actor.
        limit: how often Ray Train starts them again.
    """

    def __init__(self, channel: Any, limit: int) -> None:
        self._channel, self._limit, self._failures = channel, limit, 0

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Called by Ray Train's controller when workers have failed.

        Raises:
            RunEnded: so that Ray Train does not start them again.
        """
        for error in worker_exceptions.values():
            if isinstance(error, RunEnded):
                raise error
        self._failures += 1
        if self._failures > self._limit:
            return
        causes = {number: error for number, error in worker_exceptions.items() if not isinstance(error, SftkitError)}
        number, error = min((causes or worker_exceptions).items(), key=lambda item: item[0])
        again = f"all start again, and the run continues (restart {self._failures} of {self._limit})"
        self._channel.write.remote("stderr", f"process {number} failed: {first_line(error)}\n{again}\n")


def train(config: dict[str, Any]) -> None:
    """The training function, which imports what only workers need."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # read when transformers is imported
    from sftkit_commands.launch.ray_worker import work

    work(config)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
