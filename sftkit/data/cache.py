"""Prepared data on disk, found again by all that it depends on.

An entry is a directory named by its key. It is built beside its place and renamed into it when it is whole, under a
lock that the system lets go of if its holder dies; its files are checked against their hash before they are used.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftkit.data.store import checksum

ENTRY = "entry.json"
ROWS = "rows.arrow"


def root() -> Path:
    """Where prepared data is kept: ``$SFTKIT_CACHE``, else ``sftkit`` in the user's cache directory."""
    if given := os.environ.get("SFTKIT_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sftkit"


def key_of(parts: dict[str, Any]) -> str:
    """The key of an entry: a hash over all that it depends on."""
    import xxhash

    return xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True, default=str).encode())


@dataclass(frozen=True)
class Entry:
    """One prepared split.

    Attributes:
        directory: where its files are.
        told: what is known of it: ``summary``, ``counts``, ``stats``, and the ``parts`` of its key.
    """

    directory: Path
    info: dict[str, Any]

    @property
    def rows(self) -> Path:
        """The Arrow file of its rows."""
        return self.directory / ROWS

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_size for file in self.directory.iterdir())


def find(directory: Path) -> Entry | None:
    """The entry in a directory, if it is whole and its rows are what was written."""
    try:
        told = json.loads((directory / ENTRY).read_text(encoding="utf-8"))
        whole = checksum(directory / ROWS) == told["checksum"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Entry(directory, told) if whole else None


def get(key: str, parts: dict[str, Any], build: Callable[[Path], dict[str, Any]]) -> tuple[Entry, bool]:
    """The entry of a key, built if it is not there or not whole.

    Args:
        key: its name.
        parts: what the key was made of, kept for people to read.
        build: writes ``rows.arrow`` into the directory it is given, and returns what is to be told of it.

    Returns:
        The entry, and whether it was there.
    """
    from filelock import FileLock

    place = root() / "data" / key
    place.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{place}.lock"):
        if (entry := find(place)) is not None:
            return entry, True
        shutil.rmtree(place, ignore_errors=True)
        partial = place.with_name(f"{key}.partial")  # only the lock's holder makes one: any that is there is left over
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            told = build_entry(partial, parts, build)
            partial.replace(place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return Entry(place, told), False


def build_entry(directory: Path, parts: dict[str, Any], build: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Build an entry in a directory of its own."""
    told = {**build(directory), "parts": parts, "created": time.time(), "checksum": checksum(directory / ROWS)}
    (directory / ENTRY).write_text(json.dumps(told, default=str) + "\n", encoding="utf-8")
    return told


def entries() -> Iterator[Entry]:
    """All entries, the newest first; none is checked."""
    found = []
    for path in root().glob(f"data/*/{ENTRY}"):
        try:
            found.append(Entry(path.parent, json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError):
            found.append(Entry(path.parent, {}))
    yield from sorted(found, key=lambda entry: -entry.info.get("created", 0.0))


def clear(older_than: float = 0.0) -> tuple[int, int]:
    """Remove what was made more than ``older_than`` seconds ago: entries, what broken builds left, copies of files.

    An entry that another process is building is left alone.

    Returns:
        How many directories, and their bytes.
    """
    from filelock import FileLock, Timeout

    number = size = 0
    for path in sorted([*(root() / "data").glob("*"), *(root() / "clean").glob("*")]):
        key = path.name.partition(".")[0]
        if path.name.endswith(".lock") or time.time() - path.stat().st_mtime < older_than:
            continue
        try:
            with FileLock(str(path.with_name(f"{key}.lock")), timeout=0):
                size += sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
                shutil.rmtree(path)
                number += 1
        except Timeout:
            continue
    return number, size
