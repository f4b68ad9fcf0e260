"""Errors that the user can fix, and how they are reported."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftkit.redact import hide


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: what, where (a file and line, a key, a row, a plugin) and how to fix it.

    Secrets in the texts are hidden, such as the password in a URL.
    """

    what: str
    where: str = ""
    fix: str = ""
    key: tuple[str, ...] = ()  # path inside the configuration, from which the file and line are found

    def __post_init__(self) -> None:
        for name in ("what", "where", "fix"):
            object.__setattr__(self, name, hide(str(getattr(self, name))))

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        fix = f" -> {self.fix}" if self.fix else ""
        return f"{place}{self.what}{fix}"


class SftkitError(Exception):
    """Base of the errors that the user can fix; the command line ends with `exit_code` and no traceback."""

    exit_code = 2

    def __init__(self, problems: Problem | Iterable[Problem] | str) -> None:
        if isinstance(problems, str):  # torch rebuilds a data worker's error from the text of its traceback
            last = problems.strip().splitlines()[-1]
            problems = Problem(last.removeprefix(f"{type(self).__module__}.{type(self).__name__}: "))
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the problems too, for errors from other processes."""
        return type(self), (self.problems,)


class ConfigError(SftkitError):
    """The configuration, a plugin or its options cannot be used."""


class DataError(SftkitError):
    """The data cannot be read, or nothing can be trained on it."""


class RunError(SftkitError):
    """The run directory, the device, the prepared data or the training itself prevents the run."""


class TrainingError(SftkitError):
    """The training failed after it had begun, such as by a loss that is not finite; the last checkpoint is intact."""

    exit_code = 3


class OtherProcessError(TrainingError):
    """Another process of the run ended it, and has shown why.

    Args:
        problems: what ended it, and in which process.
        exit_code: that of the other process.
    """

    def __init__(self, problems: Problem | Iterable[Problem] | str, exit_code: int = 3) -> None:
        super().__init__(problems)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems, self.exit_code)


class Interrupted(BaseException):  # like KeyboardInterrupt, it passes through `except Exception`
    """A signal or the deadline ended the run.

    Args:
        reason: what ended it, and what was saved.
        exit_code: 130 after SIGINT (Ctrl-C); 143 after SIGTERM and at the deadline.
        directory: the run directory, if the run can be resumed.
        agreed: whether all processes of the run end with it, at the same step.
    """

    def __init__(self, reason: str, exit_code: int, directory: Path | None = None, agreed: bool = False) -> None:
        super().__init__(reason)
        self.exit_code, self.directory, self.agreed = exit_code, directory, agreed

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle all of it, for a run in another process."""
        return type(self), (str(self), self.exit_code, self.directory, self.agreed)


class HookError(RuntimeError):
    """A plugin raised an exception that is none of sftkit's: a bug, most likely of the plugin.

    Args:
        plugin: the plugin's name.
        hook: the hook in which it was raised.
        error: the exception.
    """

    def __init__(self, plugin: str, hook: str, error: Exception) -> None:
        super().__init__(hide(f"plugin {plugin}, hook {hook}: {type(error).__name__}: {error}"))
        self.plugin, self.hook = plugin, hook


def nearest(name: object, known: Iterable[str]) -> str:
    """``did you mean 'x'?`` for the known name nearest to ``name``, else an empty string."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else ""


#: The logger for what concerns a single process. Of all other lines, commands show those of the main process alone.
OF_ONE_PROCESS = "sftkit.process"
#: Libraries that call sftkit back; their lines and sftkit's own are no place for a warning to the user.
_LIBRARIES = ("accelerate", "contextlib", "datasets", "functools", "peft", "sftkit", "torch", "transformers")


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's own code that led here, through whichever functions of sftkit and libraries."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _of_library(frame.f_globals.get("__name__", "")):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def _of_library(module: str) -> bool:
    package = module.partition(".")[0]
    return package in _LIBRARIES or package.startswith("sftkit_")
