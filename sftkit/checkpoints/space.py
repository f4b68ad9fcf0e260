"""Disk space: what is free, and errors that mean that there is not enough."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from sftkit.checkpoints.files import files_in
from sftkit.errors import Problem
from sftkit.units import size_text

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FREE_SPACE = "free some space, and continue with --resume"


def free_bytes(directory: Path) -> int:
    """Free bytes on the disk of a directory, which need not exist yet."""
    place = directory.absolute()
    return shutil.disk_usage(next(part for part in (place, *place.parents) if part.exists())).free


def size_of(directory: Path) -> int:
    """The bytes of all files in a directory."""
    return sum(path.stat().st_size for path in files_in(directory))


def full_disk(error: BaseException, directory: Path) -> Problem | None:
    """The problem of a write into a directory that failed for want of space; None if the error is another one."""
    if not isinstance(error, OSError) or error.errno not in FULL:
        return None
    what = f"a file cannot be written: {error.strerror} ({size_text(free_bytes(directory))} are free)"
    return Problem(what, str(error.filename or directory), FREE_SPACE)


def failed_write(error: BaseException) -> str | None:
    """Why a file could not be written, in one line; None if the error is none of writing.

    torch and safetensors report such errors with types of their own.
    """
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = " ".join(str(error).split())
    if type(error).__name__ == "SafetensorError" or "PytorchStreamWriter" in text or "file write failed" in text:
        return text
    return None
