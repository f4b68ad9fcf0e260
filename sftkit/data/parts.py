"""The parts of a file that the processes of a stream read, so that none has to read the whole."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path

from sftkit.data.arrow_files import rows_of_groups
from sftkit.data.json_files import is_json_lines
from sftkit.data.lines import Lines
from sftkit.data.opening import filesystem_of, is_remote, kind_of, suffixes_of

logger = logging.getLogger("sftkit")

PART = 1 << 16  # bytes of a part; a smaller text file is read as a whole by each process
Part = tuple[int, int]
"""Where a part begins and ends: rows of a table, bytes of a text file."""


def divide(name: str, number: int, where: str) -> list[Part] | None:
    """The parts of a file, about equally large, or None if it has to be read as a whole.

    Parquet and Arrow files are divided at row groups and record batches, or inside them if there are too few; JSON
    lines and plain text at lines. Compressed files, CSV (whose cells may contain line breaks), other JSON, and Arrow
    streams cannot be divided.

    Args:
        name: a path or URL.
        number: the number of parts.
        where: the configuration key, for errors.
    """
    if kind_of(name) in ("parquet", "arrow"):
        sizes = rows_of_groups(name, where)
        parts = None if sizes is None else divided(sizes, number)
    else:
        size = _text_size(name, where)
        if size is not None and size < number * PART:
            return None
        parts = None if size is None or not _is_lines(name, where) else divided([size], number)
    if parts is None:
        logger.info("%s, %s: it cannot be divided, so every process reads all of it and uses its share", where, name)
    return parts


def divided(sizes: Sequence[int], number: int) -> list[Part]:
    """Ranges that share what has groups of these sizes, without cutting a group unless there are too few."""
    ends = [0, *accumulate(sizes)]
    if len(sizes) >= number:
        borders = [ends[len(sizes) * at // number] for at in range(number + 1)]
    else:
        borders = [ends[-1] * at // number for at in range(number + 1)]
    return list(pairwise(borders))


def _text_size(name: str, where: str) -> int | None:
    """The size of a text file that can be read from any place; None of any other."""
    if suffixes_of(name)[1] or kind_of(name) == "csv":
        return None
    if not is_remote(name):
        return Path(name).stat().st_size
    system, path = filesystem_of(name, where)
    size = system.info(path).get("size")
    with system.open(path, "rb") as file:
        return size if isinstance(size, int) and file.seekable() else None


def _is_lines(name: str, where: str) -> bool:
    if kind_of(name) == "json":
        return is_json_lines(name, where)
    next(iter(Lines(name, where)))  # which is checked
    return True
