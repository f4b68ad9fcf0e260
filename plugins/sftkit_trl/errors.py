"""Errors in the form in which scripts for TRL expect them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sftkit.api import SftkitError


@contextlib.contextmanager
def as_value_error() -> Iterator[None]:
    """Raise errors of sftkit as `ValueError`, which TRL raises."""
    try:
        yield
    except SftkitError as error:
        raise ValueError(str(error)) from error
