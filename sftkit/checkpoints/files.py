"""Files that are still there after a power failure, and digests of what they contain."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import xxhash

BLOCK = 4 << 20  # bytes that are read at a time


def digest(path: Path) -> str:
    """The XXH3 digest of a file's contents, 128 bits in hexadecimal. Releases the GIL while it reads and computes.

    It detects damage, not manipulation. Source: https://github.com/Cyan4973/xxHash
    """
    state, block = xxhash.xxh3_128(), memoryview(bytearray(BLOCK))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            state.update(block[:count])
    return str(state.hexdigest())


def sync(path: Path) -> None:
    """Wait until a file or a directory is on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows syncs no directories
        return
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def partial_of(path: Path) -> Path:
    """Where a file is written before it gets its name."""
    return path.with_name(f".{path.name}.partial")


def write_text(path: Path, text: str) -> None:
    """Write a file so that it has either its old or its new contents, whatever happens."""
    partial = partial_of(path)
    partial.write_text(text, encoding="utf-8")
    sync(partial)
    partial.replace(path)
    sync(path.parent)


def files_in(directory: Path) -> Iterator[Path]:
    """The files in a directory and below it, sorted."""
    yield from sorted(path for path in directory.rglob("*") if path.is_file())
