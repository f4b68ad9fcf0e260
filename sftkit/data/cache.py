"""Prepared data on disk, found again by everything that it depends on.

An entry is a directory named by its key. It is built next to its final place and renamed when it is complete, under a
lock that the system releases if its holder dies. Its rows are compared with their checksum before they are used, by one
process of each machine; the others trust the stamp that it leaves.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftkit.data.node import Stamp, node_name as node_name
from sftkit.data.store import checksum
from sftkit.errors import SftkitError
from sftkit.redact import without_secrets
from sftkit.storage import ANSWERS, PROOFS, cache_directory, made

ENTRY = "entry.json"
ROWS = "rows.arrow"


class Scratch:
    """A directory in the cache for rows while they are used: removed with this object, and not by `clear`.

    Attributes:
        path: the directory.
    """

    def __init__(self) -> None:
        from filelock import FileLock

        parent = made("rows")
        directory = tempfile.TemporaryDirectory(prefix="read-", dir=parent)
        lock = FileLock(f"{directory.name}.lock")
        lock.acquire()
        self.path = Path(directory.name)
        weakref.finalize(self, _remove, directory, lock)


def _remove(directory: tempfile.TemporaryDirectory[str], lock: Any) -> None:
    directory.cleanup()
    lock.release()
    Path(lock.lock_file).unlink(missing_ok=True)


def key_of(parts: dict[str, Any]) -> str:
    """The key of an entry: a hash over everything that it depends on."""
    import xxhash

    return xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True, default=str).encode())


@dataclass(frozen=True)
class Entry:
    """One prepared split.

    Attributes:
        directory: the directory with its files.
        info: ``summary``, ``counts`` and ``stats`` of its rows, and the ``parts`` of its key.
    """

    directory: Path
    info: dict[str, Any]

    @property
    def rows(self) -> Path:
        """The Arrow file with its rows."""
        return self.directory / ROWS

    @property
    def size(self) -> int:
        """Size on disk in bytes."""
        return sum(file.stat().st_size for file in self.directory.iterdir())


def find(directory: Path, valid: Callable[[dict[str, Any]], bool] = lambda info: True) -> Entry | None:
    """The entry in a directory, or None if it is incomplete or not ``valid``, or does not match its checksum."""
    entry = _read(directory)
    try:
        if entry is None or not valid(entry.info):
            return None
        return entry if checksum(entry.rows) == entry.info["checksum"] else None
    except (OSError, KeyError):
        return None


def _read(directory: Path) -> Entry | None:
    """The entry in a directory, whose rows are not read; None if it is incomplete."""
    try:
        info = json.loads((directory / ENTRY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return Entry(directory, info) if isinstance(info, dict) else None


def has(key: str) -> bool:
    """Whether there is an entry of this key; its rows are not compared with their checksum."""
    return _read(cache_directory() / "data" / key) is not None


def get(
    key: str,
    parts: dict[str, Any],
    build: Callable[[Path], dict[str, Any]],
    valid: Callable[[dict[str, Any]], bool] = lambda info: True,
) -> tuple[Entry, bool]:
    """The entry of a key; it is built if it does not exist or is damaged.

    Of the processes of a launch on one machine, the first one does this, and the others wait for it.

    Args:
        key: the entry's name.
        parts: what the key was computed from; stored for people to read, without secrets.
        build: writes ``rows.arrow`` into a directory and returns the entry's ``info``.
        valid: whether an entry that exists can be used, given its ``info``.

    Returns:
        The entry, and whether it already existed.

    Raises:
        SftkitError: as ``build``, also in the processes that wait.
    """
    from filelock import FileLock

    place = made("data") / key
    lock, stamp = FileLock(f"{place}.lock"), stamp_of(key)
    if stamp.awaited(lock) and (entry := _read(place)) is not None and valid(entry.info):
        return entry, True
    with lock:
        try:
            found = find(place, valid)
            entry = found or _build(place, parts, build)
        except SftkitError as error:
            stamp.write([], error)
            raise
        stamp.write([entry.rows, entry.directory / ENTRY])
    return entry, found is not None


def once_per_node(name: str, verify: Callable[[], Sequence[Path]]) -> None:
    """Let one process of this machine verify files, which the others trust.

    Args:
        name: identifies the files and what they should be.
        verify: verifies them, and returns their paths.

    Raises:
        SftkitError: as ``verify``, also in the processes that wait.
    """
    from filelock import FileLock

    lock, stamp = FileLock(made("stamps") / f"{name}.lock"), stamp_of(name)
    if stamp.awaited(lock):
        return
    with lock:
        try:
            stamp.write(verify())
        except SftkitError as error:
            stamp.write([], error)
            raise


def stamp_of(key: str) -> Stamp:
    """The stamp of what this machine has verified under a key."""
    return Stamp(cache_directory() / "stamps" / f"{key}.{node_name()}")


def partial_of(place: Path) -> Path:
    """Where an entry is built: only the holder of its lock on this machine writes there."""
    return place.with_name(f"{place.name}.{node_name()}.partial")


def _build(place: Path, parts: dict[str, Any], build: Callable[[Path], dict[str, Any]]) -> Entry:
    """Build an entry, and give it its name.

    A file system that is shared without working locks lets two machines build at once. The first one to finish gives
    its entry the name, and the other one uses it.
    """
    shutil.rmtree(place, ignore_errors=True)
    partial = partial_of(place)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        info = build_entry(partial, parts, build).info
        try:
            partial.replace(place)
        except OSError:
            if (other := find(place)) is None:
                raise
            return other
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Entry(place, info)


def build_entry(directory: Path, parts: dict[str, Any], build: Callable[[Path], dict[str, Any]]) -> Entry:
    """Build an entry in an empty directory."""
    info = {
        **build(directory),
        "parts": without_secrets(parts),
        "created": time.time(),
        "checksum": checksum(directory / ROWS),
    }
    (directory / ENTRY).write_text(json.dumps(info, default=str) + "\n", encoding="utf-8")
    return Entry(directory, info)


def entries() -> Iterator[Entry]:
    """All entries, newest first. Their rows are not checked."""
    found = []
    for path in cache_directory().glob(f"data/*/{ENTRY}"):
        try:
            found.append(Entry(path.parent, json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError):
            found.append(Entry(path.parent, {}))
    yield from sorted(found, key=lambda entry: -entry.info.get("created", 0.0))


def clear(older_than: float = 0.0) -> tuple[int, int]:
    """Remove what is older than ``older_than`` seconds: entries, and remains of failed builds and of killed runs.

    Entries that another process is building are kept.

    Returns:
        The number of directories removed, and their size in bytes.
    """
    from filelock import FileLock, Timeout

    number = size = 0
    for small in (file for name in ("stamps", ANSWERS, PROOFS) for file in (cache_directory() / name).glob("*")):
        with suppress(FileNotFoundError):  # of a process that writes it or removes it
            if time.time() - small.stat().st_mtime >= older_than:
                small.unlink()
    for path in sorted([*(cache_directory() / "data").glob("*"), *(cache_directory() / "rows").glob("*")]):
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
