"""What identifies the content of files, wherever they are: a digest, or what a remote system reports."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from sftkit.data.node import identity_on_disk
from sftkit.data.opening import cannot_read, filesystem_of, is_remote, suffixes_of
from sftkit.data.store import checksum
from sftkit.errors import DataError
from sftkit.storage import made, write_json

#: What remote systems call a digest of a file's content, or a tag that changes with it.
TAGS = frozenset({"etag", "md5", "md5hash", "content_md5", "crc32c", "checksum", "sha256", "blob_id"})
#: A file that was changed within this time before it was read may change again without another time (nanoseconds).
SETTLED = 2_000_000_000


def content_of(name: str, where: str) -> dict[str, Any]:
    """What identifies the content of a file, but not its place.

    Of a remote file it is the tag that its system gives the content. If there is none, it is all that the system
    reports, with the URL.

    Args:
        name: a path or URL.
        where: the configuration key, for errors.

    Raises:
        DataError: if it cannot be read.
    """
    kind = "".join(suffixes_of(name))  # which decides how it is read
    if not is_remote(name):
        try:
            return {"kind": kind, **digest_of(Path(name))}
        except OSError as error:
            raise DataError(cannot_read(name, error, where)) from error
    system, path = filesystem_of(name, where)
    try:
        info = system.info(path)
    except Exception as error:  # each file system has its own
        raise DataError(cannot_read(name, error, where)) from error
    reported = {key: str(value) for key, value in sorted(info.items()) if key != "name"}
    tags = {key: value for key, value in reported.items() if key.lower() in TAGS and info[key]}
    return {"kind": kind, "size": info.get("size"), **(tags or {"url": name, **reported})}


def was_read(path: Path) -> bool:
    """Whether the cache directory keeps the digest of a local file as it is now, so that it is not new."""
    return path.is_file() and _known(_record(path), path) is not None


def _record(path: Path) -> Path:
    import xxhash

    return made("contents") / f"{xxhash.xxh3_128_hexdigest(str(path.resolve()).encode())}.json"


def digest_of(path: Path) -> dict[str, Any]:
    """Size and digest of a local file. Each state of a file is read once; the cache directory keeps its digest.

    Raises:
        OSError: if it cannot be read.
        RunError: if nothing can be written into the cache.
    """
    from filelock import FileLock

    record = _record(path)
    if (known := _known(record, path)) is not None:
        return known
    with FileLock(f"{record}.lock"):
        if (known := _known(record, path)) is not None:
            return known
        begun, before = time.time_ns(), identity_on_disk(path)
        found = {"size": before[0], "digest": checksum(path)}
        settled = identity_on_disk(path) == before and before[1] < begun - SETTLED
        if settled:
            write_json(record, {"path": str(path.resolve()), "on disk": before, "found": found})
        return found


def _known(record: Path, path: Path) -> dict[str, Any] | None:
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
        found: dict[str, Any] | None = known["found"] if known["on disk"] == identity_on_disk(path) else None
        return found
    except (FileNotFoundError, ValueError, KeyError):
        path.stat()  # the error of a file that is not there
        return None
