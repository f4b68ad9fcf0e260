"""JSON lines read by several processes: each job is some lines, and becomes blocks of a table.

A table is made of blocks of rows, and what its columns are depends on where a block ends. Lines are rows only as long
as each of them is one, so a line that is blank or cannot be read ends this, and the files are read row by row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from sftkit.data.blocks import Block, Storage
from sftkit.data.exact import BLOCK, ExactTable
from sftkit.data.json_files import is_json_lines, json_line
from sftkit.data.lines import PIECE, Lines
from sftkit.data.pool import Pool
from sftkit.data.report import Report
from sftkit.errors import DataError

LARGEST = 1 << 26  # bytes of a job, of which several are in memory


class _Lines(NamedTuple):
    """A job.

    Attributes:
        lines: the lines.
        known: how columns are stored, as far as it is known.
    """

    lines: list[bytes]
    known: Mapping[str, Storage]


class _NotRows(Exception):  # noqa: N818 (not an error)
    """The files have to be read row by row."""


class Places(Protocol):
    """Gets the places of rows."""

    def start_file(self, name: str) -> None:
        """The next rows come from this file."""

    def add_lines(self, first: int, number: int) -> None:
        """Add rows on lines one after the other."""


def add_lines(names: Sequence[str], pool: Pool, where: str, table: ExactTable, places: Places) -> bool:
    """Add the rows of files of JSON lines to a table.

    Args:
        names: paths or URLs.
        pool: reads the lines.
        where: the configuration key, for errors.
        table: gets the rows.
        places: gets their files and lines.

    Returns:
        Whether each line was a row; if not, ``table`` and ``places`` are incomplete.

    Raises:
        RunError: if a worker dies.
    """
    try:
        jobs = (_Lines(lines, table.storages) for lines in _jobs(names, where, places))
        for _, blocks in pool.in_order(_blocks_of, jobs):
            if not isinstance(blocks, list):
                return False
            for block in blocks:
                table.add_block(block)
    except (_NotRows, DataError):
        return False
    return True


def _blocks_of(job: _Lines) -> list[Block] | None:
    """The blocks of some lines; None if a line is no row, or cannot be stored."""
    report, rows = Report(""), []
    try:
        for line in job.lines:
            row = json_line(line, "", report)
            if row is None:
                return None
            rows.append(row)
        return [Block.of(rows[at : at + BLOCK], job.known) for at in range(0, len(rows), BLOCK)]
    except (DataError, UnicodeEncodeError):
        return None


def _jobs(names: Sequence[str], where: str, places: Places) -> Iterator[list[bytes]]:
    """The lines of all files in jobs of whole blocks; only the last one may end within a block."""
    waiting: list[bytes] = []
    size = 0
    for name in names:
        if not is_json_lines(name, where):
            raise _NotRows
        places.start_file(name)
        number = 1
        for lines in Lines(name, where).many():
            places.add_lines(number, len(lines))
            number += len(lines)
            waiting += lines
            size += sum(map(len, lines))
            if size > LARGEST:
                raise _NotRows
            whole = len(waiting) - len(waiting) % BLOCK
            if whole and size >= PIECE:
                yield waiting[:whole]
                waiting = waiting[whole:]
                size = sum(map(len, waiting))
    if waiting:
        yield waiting
