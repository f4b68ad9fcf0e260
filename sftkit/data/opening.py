"""Local and remote files: their type, their content without compression, and what identifies it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast
from urllib.parse import urlsplit

from sftkit.errors import DataError, Problem

KINDS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
MAGIC = "*?["  # characters of patterns
TEXT_KINDS = frozenset({"json", "csv", "text"})
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd", ".zstd": "zstd"}
SUPPORTED = f"use one of these file types: {', '.join(KINDS)}; text files may be compressed: {', '.join(COMPRESSIONS)}"


def is_remote(name: str) -> bool:
    """Whether a name is a URL, such as ``s3://bucket/train.jsonl``."""
    return "://" in name


def suffixes_of(name: str) -> tuple[str, str]:
    """The suffix that says what a file is, and that of its compression or ``""``: ``(".jsonl", ".gz")``."""
    path = PurePosixPath(urlsplit(name).path if name.startswith(("http://", "https://")) else Path(name).name)
    last = path.suffix.lower()
    return (Path(path.stem).suffix.lower(), last) if last in COMPRESSIONS else (last, "")


def kind_of(name: str) -> str | None:
    """The kind of a data file, by its suffix; None if it is not supported."""
    suffix, compression = suffixes_of(name)
    kind = KINDS.get(suffix)
    return None if compression and kind not in TEXT_KINDS else kind


def filesystem_of(name: str, where: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
        DataError: if it is unknown, or its package is not installed.
    """
    from fsspec.core import url_to_fs

    try:
        return cast("tuple[Any, str]", url_to_fs(name))
    except ImportError as error:
        missing = getattr(error.__cause__, "name", None) or getattr(error, "name", None)
        fix = f"pip install {missing}" if missing else str(error)
        protocol = name.partition("://")[0]
        raise DataError(Problem(f"{protocol}:// needs the package {missing or 'named here'}", where, fix)) from None
    except ValueError as error:
        raise DataError(Problem(f"cannot open {name}: {error}", where, "correct the URL")) from None


@contextmanager
def open_binary(name: str, where: str) -> Iterator[IO[bytes]]:
    """The content of a local or remote file, without its compression.

    Raises:
        DataError: if a package for it is not installed.
        OSError: if it cannot be read.
    """
    from fsspec.compression import compr

    compression = COMPRESSIONS.get(suffixes_of(name)[1])
    if compression is not None and compression not in compr:
        what = f"{name} is compressed with {compression}, which needs the package zstandard"
        raise DataError(Problem(what, where, "pip install zstandard"))
    with ExitStack() as stack:
        if is_remote(name):
            system, path = filesystem_of(name, where)
            file = stack.enter_context(system.open(path, "rb"))
        else:
            file = stack.enter_context(Path(name).open("rb"))
        if compression is not None:
            file = stack.enter_context(compr[compression](file, mode="rb"))
        yield io.BufferedReader(file) if compression == "zstd" else file


def state_of(name: str, where: str) -> list[Any]:
    """What changes with a file, without reading it: its name, size and times, or what a remote system reports.

    Raises:
        DataError: if a remote file cannot be found.
    """
    if not is_remote(name):
        path = Path(name)
        stat = path.stat()
        return [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    system, path_in_system = filesystem_of(name, where)
    try:
        info = system.info(path_in_system)
    except Exception as error:  # each file system has its own
        raise DataError(cannot_read(name, error, where)) from error
    return [name, {key: str(value) for key, value in sorted(info.items()) if key != "name"}]


def cannot_read(name: str, error: BaseException, where: str) -> Problem:
    """The problem of a file that cannot be opened or read."""
    first = (str(error).splitlines() or [""])[0] or type(error).__name__
    fix = "check the URL, the network and your credentials" if is_remote(name) else "check the file"
    return Problem(f"cannot read {name}: {first}", where, fix)
