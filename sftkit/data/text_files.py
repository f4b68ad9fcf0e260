"""Rows of text files, each with its line: JSON, CSV, and plain text."""

from __future__ import annotations

import codecs
import csv
from collections import Counter
from collections.abc import Iterator
from typing import Any

from sftkit.data.json_files import json_rows
from sftkit.data.opening import cannot_read, kind_of, open_binary, suffixes_of
from sftkit.data.report import Report
from sftkit.errors import DataError, Problem

LARGEST_CELL = (1 << 31) - 1  # bytes; the default of the module csv is 131,072
#: How files begin that are no text.
_MAGIC = {
    b"\x1f\x8b": "compressed with gzip",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ\x00": "compressed with xz",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"PK\x03\x04": "a ZIP archive",
    b"PAR1": "a Parquet file",
}


def text_rows(name: str, split: str | None, report: Report) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a text file, each with its line, or 0 if that is not known.

    Args:
        name: a path or URL.
        split: the split to read, if a JSON file holds several; None is for evaluation data.
        report: gets the lines that cannot be read.

    Raises:
        DataError: if the file cannot be read.
    """
    lines = _lines(name, report.where)
    kind = kind_of(name)
    if kind == "json":
        yield from json_rows(name, lines, split, report)
    elif kind == "csv":
        yield from _csv_rows(name, lines, "\t" if suffixes_of(name)[0] == ".tsv" else ",", report)
    else:
        for number, line in enumerate(lines, start=1):
            text = _decoded(line, f"{name}:{number}", report)
            if text is not None:
                yield number, {"text": text.rstrip("\r\n")}


def _lines(name: str, where: str) -> Iterator[bytes]:
    """The lines of a file, without a byte order mark."""
    try:
        with open_binary(name, where) as file:
            first = file.readline()
            if not first:
                raise DataError(Problem("the file is empty", f"{where}, {name}", "use a file with at least one row"))
            if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise DataError(Problem("the file is UTF-16, not UTF-8", f"{where}, {name}", "save it as UTF-8"))
            if (found := next((kind for magic, kind in _MAGIC.items() if first.startswith(magic)), None)) is not None:
                what = f"the file is {found}, not text"
                raise DataError(Problem(what, f"{where}, {name}", "unpack it, or give it the suffix of its type"))
            yield first.removeprefix(codecs.BOM_UTF8)
            yield from file
    except DataError:
        raise
    except Exception as error:  # each file system and each compression has its own
        raise DataError(cannot_read(name, error, where)) from error


def _decoded(line: bytes, place: str, report: Report) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        report.unreadable(place, "not valid UTF-8", "save it as UTF-8")
        return None


def _csv_rows(
    name: str, lines: Iterator[bytes], separator: str, report: Report
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a CSV or TSV file. Cells are text as written, or None if they are empty."""
    texts = (_decoded(line, f"{name}:{number}", report) for number, line in enumerate(lines, start=1))
    limit = csv.field_size_limit(LARGEST_CELL)
    try:
        reader = csv.reader(("\n" if text is None else text for text in texts), delimiter=separator, strict=True)
        header = _header(reader, f"{report.where}, {name}:1")
        while True:
            start = reader.line_num + 1
            place = f"{name}:{start}"
            try:
                cells = next(reader)
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
            yield start, {column: cell or None for column, cell in zip(header, cells, strict=True)}
    finally:
        csv.field_size_limit(limit)


def _header(reader: Iterator[list[str]], place: str) -> list[str]:
    try:
        names = next(reader, [])
    except csv.Error as error:
        raise DataError(Problem(f"not valid CSV: {error}", place, "save the file again as CSV")) from None
    if len(names) == 1 and (other := next((char for char in ";\t|" if char in names[0]), None)):
        what = f"the header is one column, {names[0]!r}, which contains {other!r}"
        raise DataError(Problem(what, place, "separate cells by commas in .csv files, and by tabs in .tsv files"))
    if doubled := [name for name, number in Counter(names).items() if number > 1]:
        raise DataError(Problem(f"the column {doubled[0]!r} occurs twice", place, "rename one of the columns"))
    return names
