"""Errors and warnings in the form in which scripts for TRL expect them."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator

from sftkit.api import SftkitError


@contextlib.contextmanager
def as_value_error() -> Iterator[None]:
    """Raise errors of sftkit as `ValueError`, which TRL raises."""
    try:
        yield
    except SftkitError as error:
        raise ValueError(str(error)) from error


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the script, whichever function of this package noticed the reason."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals["__name__"].partition(".")[0] == __package__:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
