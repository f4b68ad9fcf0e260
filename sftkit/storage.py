"""The cache directory, which can be removed at any time."""

from __future__ import annotations

import json
import os
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from sftkit.errors import Problem, RunError

CACHE_FIX = "set SFTKIT_CACHE to a directory that can be written"
ANSWERS = "answers"  # the directory of `sftkit.answers`
PROOFS = "proofs"  # of tokenizing engines


def cache_directory() -> Path:
    """The cache directory: ``$SFTKIT_CACHE``, else ``sftkit`` in the user's cache directory.

    Raises:
        RunError: if there is none.
    """
    if directory := os.environ.get("SFTKIT_CACHE"):
        return Path(directory).expanduser()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sftkit"
    except RuntimeError as error:  # neither a variable nor the system names a home
        raise RunError(Problem("there is no home directory for the cache", "SFTKIT_CACHE", CACHE_FIX)) from error


def made(name: str) -> Path:
    """A directory in the cache, which is made if it does not exist.

    Raises:
        RunError: if nothing can be written there.
    """
    directory = cache_directory() / name
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return directory
    except OSError as error:
        what = f"nothing can be written into the cache: {error.strerror or error}"
        raise RunError(Problem(what, str(directory), CACHE_FIX)) from error


def write_json(path: Path, value: Any) -> None:
    """Write plain data into a file, which is complete or absent whatever happens, and whoever else writes it.

    Raises:
        OSError: if it cannot be written.
        TypeError: if JSON does not have the value.
    """
    text = json.dumps(value)
    partial = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise
