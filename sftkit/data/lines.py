"""The lines of a text file, from any place on."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

from sftkit.data.opening import cannot_read, open_binary
from sftkit.errors import DataError, Problem

PIECE = 1 << 20  # bytes to read at once of what is passed over
#: How files begin that are no text.
_MAGIC = {
    b"\x1f\x8b": "compressed with gzip",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ\x00": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"PK\x03\x04": "a ZIP archive",
    b"PAR1": "a Parquet file",
}


class Line(NamedTuple):
    """A line of a file.

    Attributes:
        number: its number, from 1.
        end: the bytes of the file up to its end, without compression.
        text: its bytes, without a byte order mark.
    """

    number: int
    end: int
    text: bytes


class Place(NamedTuple):
    """A place in a file, or in a part of one, between two rows.

    Attributes:
        rows: the rows before it.
        lines: the lines before it; 0 in a file whose rows are not lines.
        bytes: the bytes of the file before it, without compression; 0 like the lines.
    """

    rows: int
    lines: int
    bytes: int


START = Place(0, 0, 0)


class TextRow(NamedTuple):
    """A row of a text file.

    Attributes:
        line: its line, or 0 if that is not known.
        row: the row.
        after: the place behind it.
        byte: in a part of a file, whose lines are not counted, the byte at which the row begins, from 0.
    """

    line: int
    row: dict[str, Any]
    after: Place
    byte: int | None = None


class Lines:
    """The lines of a file, one after the other.

    Args:
        name: a path or URL.
        where: the configuration key, for errors.

    Raises:
        DataError: while it is read, if it is empty, no text, or cannot be read.
    """

    def __init__(self, name: str, where: str) -> None:
        self._name, self._where = name, where
        self._sought: Place | None = None
        self._lines = self._read()

    def __iter__(self) -> Iterator[Line]:
        return self._lines

    def seek(self, place: Place) -> None:
        """Continue at a place. The first line must have been read."""
        self._sought = place

    def after(self, place: Place) -> Iterator[Line]:
        """The lines behind a place; the first line is checked in any case."""
        if place.lines:
            next(self._lines)
            self.seek(place)
        return self._lines

    def within(self, part: tuple[int, int], place: Place) -> Iterator[Line]:
        """The lines that begin in a part of the file, counted from its start.

        Args:
            part: the first byte of the part, and the first one after it.
            place: where to start, in the part.
        """
        (begin, end), number = part, place.lines
        with self._opened() as file:
            if number:
                begin = place.bytes
            elif begin:
                file.seek(begin - 1)
                begin += len(file.readline()) - 1  # the rest of a line of the part before
            file.seek(begin)
            while begin < end and (line := file.readline()):
                number, begin = number + 1, begin + len(line)
                yield Line(number, begin, line.removeprefix(codecs.BOM_UTF8) if begin == len(line) else line)

    def many(self) -> Iterator[list[bytes]]:
        """All lines, without a byte order mark, some at a time: the first alone, then about a megabyte each."""
        with self._opened() as file:
            first = file.readline()
            self._check(first)
            yield [first.removeprefix(codecs.BOM_UTF8)]
            while lines := file.readlines(PIECE):
                yield lines

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        try:
            with open_binary(self._name, self._where) as file:
                yield file
        except DataError:
            raise
        except Exception as error:  # each file system and each compression has its own
            raise DataError(cannot_read(self._name, error, self._where)) from error

    def _read(self) -> Iterator[Line]:
        with self._opened() as file:
            first = file.readline()
            self._check(first)
            number, end, line = 1, len(first), first.removeprefix(codecs.BOM_UTF8)
            while line:
                yield Line(number, end, line)
                if self._sought is not None:
                    _seek(file, end, self._sought.bytes)
                    (_, number, end), self._sought = self._sought, None
                line = file.readline()
                number, end = number + 1, end + len(line)

    def _check(self, first: bytes) -> None:
        place = f"{self._where}, {self._name}"
        if not first:
            raise DataError(Problem("the file is empty", place, "use a file with at least one row"))
        if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise DataError(Problem("the file is UTF-16, not UTF-8", place, "save it as UTF-8"))
        if (found := next((kind for magic, kind in _MAGIC.items() if first.startswith(magic)), None)) is not None:
            fix = "unpack it, or give it the suffix of its type"
            raise DataError(Problem(f"the file is {found}, not text", place, fix))


def _seek(file: IO[bytes], at: int, to: int) -> None:
    """Go from one place of a file to another; what cannot seek, such as some compressions, is read up to there."""
    try:
        file.seek(to)
    except (OSError, ValueError):  # each kind of file has its own
        while at < to and (piece := file.read(min(PIECE, to - at))):
            at += len(piece)
