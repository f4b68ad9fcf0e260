"""Rows of text files, each with its line: JSON, CSV, and plain text."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from threading import Lock

from sftkit.data.json_files import json_line, json_rows
from sftkit.data.lines import START, Line, Lines, Place, TextRow
from sftkit.data.opening import kind_of, suffixes_of
from sftkit.data.report import Report
from sftkit.errors import DataError, Problem

LARGEST_CELL = (1 << 31) - 1  # bytes; the default of the module csv is 131,072
_LIMIT = Lock()  # of the module csv, which streams set in several threads


def text_rows(name: str, split: str | None, report: Report, start: Place = START) -> Iterator[TextRow]:
    """The rows of a text file.

    Args:
        name: a path or URL.
        split: the split to read, if a JSON file holds several; None is for evaluation data.
        report: gets the lines that cannot be read.
        start: where to start: behind the row that had this place.

    Raises:
        DataError: if the file cannot be read.
    """
    lines = Lines(name, report.where)
    kind = kind_of(name)
    if kind == "json":
        yield from json_rows(name, lines, split, report, start)
    elif kind == "csv":
        yield from _csv_rows(name, lines, "\t" if suffixes_of(name)[0] == ".tsv" else ",", report, start)
    else:
        yield from _texts(name, lines, report, start)


def part_rows(name: str, part: tuple[int, int], report: Report, start: Place = START) -> Iterator[TextRow]:
    """The rows that begin in a part of a file of JSON lines or plain text.

    Args:
        name: a path or URL.
        part: the first byte of the part, and the first one after it.
        report: gets the lines that cannot be read, each with its first byte.
        start: where to start in the part: behind the row that had this place.

    Raises:
        DataError: if the file cannot be read.
    """
    rows, is_json = start.rows, kind_of(name) == "json"
    for line in Lines(name, report.where).within(part, start):
        byte = line.end - len(line.text)
        place = byte_place(name, byte)
        if is_json:
            row = json_line(line.text, place, report)
        else:
            text = _decoded(line.text, place, report)
            row = None if text is None else {"text": text.rstrip("\r\n")}
        if row is not None:
            rows += 1
            yield TextRow(0, row, Place(rows, line.number, line.end), byte)


def byte_place(name: str, byte: int) -> str:
    """The place of a line whose number is not known."""
    return f"{name}, the line at byte {byte}"


def _texts(name: str, lines: Lines, report: Report, start: Place) -> Iterator[TextRow]:
    rows = start.rows
    for line in lines.after(start):
        text = _decoded(line.text, f"{name}:{line.number}", report)
        if text is not None:
            rows += 1
            yield TextRow(line.number, {"text": text.rstrip("\r\n")}, Place(rows, line.number, line.end))


def _decoded(line: bytes, place: str, report: Report) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        report.unreadable(place, "not valid UTF-8", "save it as UTF-8")
        return None


def _csv_rows(name: str, lines: Lines, separator: str, report: Report, start: Place) -> Iterator[TextRow]:
    """The rows of a CSV or TSV file. Cells are text as written, or None if they are empty."""
    last = Line(0, 0, b"")  # of the row

    def decoded() -> Iterator[str | None]:
        nonlocal last
        for last in lines:
            yield _decoded(last.text, f"{name}:{last.number}", report)

    texts, rows = decoded(), start.rows
    reader = csv.reader(("\n" if text is None else text for text in texts), delimiter=separator, strict=True)
    with report.repeated() if start.lines else nullcontext():
        header = _header(reader, f"{report.where}, {name}:1")
    if start.lines:
        lines.seek(start)
        last = Line(start.lines, start.bytes, b"")
    while True:
        first = last.number + 1
        place = f"{name}:{first}"
        try:
            cells = _cells(reader)
        except StopIteration:
            return
        except csv.Error as error:
            report.unreadable(place, f"not valid CSV: {error}", "write a double quote inside quotes twice")
            continue
        if not cells:
            continue
        if len(cells) != len(header):
            what = f"the row has {len(cells)} cells, but the header has {len(header)}"
            report.unreadable(place, what, "enclose cells that contain a separator in quotes")
            continue
        rows += 1
        row = {column: cell or None for column, cell in zip(header, cells, strict=True)}
        yield TextRow(first, row, Place(rows, last.number, last.end))


def _cells(reader: Iterator[list[str]]) -> list[str]:
    """The next row, whose cells may be long. The limit is one of the process, so that it is not left changed.

    Raises:
        StopIteration: at the end of the file.
    """
    with _LIMIT:
        limit = csv.field_size_limit(LARGEST_CELL)
        try:
            return next(reader)
        finally:
            csv.field_size_limit(limit)


def _header(reader: Iterator[list[str]], place: str) -> list[str]:
    try:
        names = _cells(reader)
    except StopIteration:
        names = []
    except csv.Error as error:
        raise DataError(Problem(f"not valid CSV: {error}", place, "save the file again as CSV")) from None
    if len(names) == 1 and (other := next((char for char in ";\t|" if char in names[0]), None)):
        what = f"the header is one column, {names[0]!r}, which contains {other!r}"
        raise DataError(Problem(what, place, "separate cells by commas in .csv files, and by tabs in .tsv files"))
    if doubled := [name for name, number in Counter(names).items() if number > 1]:
        raise DataError(Problem(f"the column {doubled[0]!r} occurs twice", place, "rename one of the columns"))
    return names
