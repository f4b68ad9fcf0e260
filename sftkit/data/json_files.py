"""Rows of JSON files: JSON lines, one array, several objects one after the other, or one object that holds the rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import Any

from sftkit.data.lines import START, Line, Lines, Place, TextRow
from sftkit.data.report import Report
from sftkit.data.splits import canonical, choose_split
from sftkit.errors import DataError, Problem

JSON_FIX = "write one JSON object per line, or one array of objects"
#: Keys of an object that holds the rows: of many data sets, of LMFlow, and of the rows that the hub shows.
DATA_KEYS = ("data", "instances", "rows")
SPLITS = frozenset({"train", "validation", "test"})
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_HALF = "half of a surrogate pair, such as half an emoji"
Row = dict[str, Any]


def json_rows(name: str, lines: Lines, split: str | None, report: Report, place: Place = START) -> Iterator[TextRow]:
    """The rows of a file.

    Args:
        name: the name of the file.
        lines: its lines.
        split: the split to read if an object holds the rows of several; None is for evaluation data.
        report: gets what cannot be read.
        place: where to start.

    Raises:
        DataError: if the file cannot be read as a whole.
    """
    filled = (line for line in lines if line.text.strip())
    start = list(_take(filled, 2))
    if not _is_lines(name, start):
        rows = _rows_of_document(name, chain(start, filled), split, report)
        if place.rows:
            with report.repeated():
                next(islice(rows, place.rows - 1, None))
        for count, (number, value) in enumerate(rows, start=place.rows + 1):
            yield TextRow(number, value, Place(count, 0, 0))
        return
    if place.lines:
        lines.seek(place)
        start = []
    count = place.rows
    for line in chain(start, filled):
        row = _row_of_line(line.text, f"{name}:{line.number}", report)
        if row is not None:
            count += 1
            yield TextRow(line.number, row, Place(count, line.number, line.end))


def is_json_lines(name: str, where: str) -> bool:
    """Whether each line of a file is a row.

    Raises:
        DataError: if it cannot be read, or is no text.
    """
    return _is_lines(name, list(_take((line for line in Lines(name, where) if line.text.strip()), 2)))


def json_line(line: bytes, place: str, report: Report) -> Row | None:
    """The row of a line of JSON lines; None if it is empty, or cannot be read and is reported."""
    return _row_of_line(line, place, report) if line.strip() else None


def _take(lines: Iterator[Line], number: int) -> Iterator[Line]:
    for _, line in zip(range(number), lines, strict=False):
        yield line


def _is_lines(name: str, start: list[Line]) -> bool:
    """Whether the first two lines with text are rows, or broken rows, of JSON lines."""
    if not start or start[0].text.lstrip().startswith(b"["):
        return False
    objects = [isinstance(_loaded(line.text), dict) for line in start]
    if objects == [True]:
        return not re.search(r"\.json(\.\w+)?$", name)
    return any(objects) or start[0].text.rstrip().endswith(b"}") or not start[0].text.lstrip().startswith(b"{")


def _loaded(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except (ValueError, RecursionError):  # also of the encoding
        return None


def _row_of_line(line: bytes, place: str, report: Report) -> Row | None:
    try:
        text = line.decode()
        row = json.loads(text)
    except UnicodeDecodeError:
        report.unreadable(place, "not valid UTF-8", "save it as UTF-8")
        return None
    except (ValueError, RecursionError) as error:
        report.unreadable(place, f"not valid JSON: {getattr(error, 'msg', error)}", JSON_FIX)
        return None
    if not isinstance(row, dict):
        report.unreadable(place, f"not a JSON object: {text.strip()[:60]!r}", JSON_FIX)
        return None
    return row if "\\u" not in text or is_unicode(text, row, place, report) else None


def is_unicode(text: str, row: Row, place: str, report: Report) -> bool:
    """Whether a row can be encoded; an escape may stand for half of a character, which then is reported.

    Args:
        text: the JSON text that the row was read from.
        row: the row.
        place: where it is.
        report: gets what cannot be read.
    """
    if _SURROGATE.search(text) and (column := half_character(row)) is not None:
        report.unreadable(place, f"column {column!r} has {_HALF}", "fix the text, or remove the row")
        return False
    return True


def half_character(row: Mapping[str, Any]) -> str | None:
    """The first column with text that is not valid Unicode."""
    for column, value in row.items():
        try:
            json.dumps([column, value], ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError:
            return ascii(column)[1:-1]
    return None


def _rows_of_document(name: str, lines: Iterable[Line], split: str | None, report: Report) -> Iterator[tuple[int, Row]]:
    """The rows of a file that is one JSON value, or several one after the other."""
    text, numbers = _text_of(name, lines, report.where)
    values = list(_values_of(name, text, numbers, report.where))
    if len(values) != 1:
        for number, value, source in values:
            if not isinstance(value, dict):
                report.unreadable(f"{name}:{number}", f"not a JSON object: {source[:60]!r}", JSON_FIX)
            elif is_unicode(source, value, f"{name}:{number}", report):
                yield number, value
        return
    (number, value, _) = values[0]
    rows = value if isinstance(value, list) else rows_of_object(value, name, split, report)
    one_object = rows == [value]
    for index, row in enumerate(rows, start=1):
        place = f"{name}:{number}" if one_object else f"{name}, row {index}"
        if isinstance(row, str):
            row = {"text": row}  # as `datasets` reads an array of texts
        if not isinstance(row, dict):
            report.unreadable(place, f"not a JSON object: {json.dumps(row)[:60]!r}", JSON_FIX)
        elif is_unicode(text, row, place, report):
            yield (number if one_object else 0), row


def _text_of(name: str, lines: Iterable[Line], where: str) -> tuple[str, list[int]]:
    """The text of a file without its blank lines, and the number of each line."""
    numbers, parts = [], []
    for number, _, line in lines:
        numbers.append(number)
        try:
            parts.append(line.decode())
        except UnicodeDecodeError:
            raise DataError(Problem("not valid UTF-8", f"{where}, {name}:{number}", "save it as UTF-8")) from None
    return "".join(parts), numbers


def _values_of(name: str, text: str, numbers: list[int], where: str) -> Iterator[tuple[int, Any, str]]:
    """Each JSON value of a text, with its line and its text."""
    decoder = json.JSONDecoder()
    at = len(text) - len(text.lstrip())
    while at < len(text):
        try:
            value, end = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            line = numbers[min(text.count("\n", 0, error.pos), len(numbers) - 1)]
            raise DataError(Problem(f"not valid JSON: {error.msg}", f"{where}, {name}:{line}", JSON_FIX)) from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits; values inside each other
            line = numbers[text.count("\n", 0, at)]
            raise DataError(Problem(f"not valid JSON: {error}", f"{where}, {name}:{line}", JSON_FIX)) from None
        yield numbers[text.count("\n", 0, at)], value, text[at:end]
        at = end + len(text) - end - len(text[end:].lstrip())


def rows_of_object(value: Any, name: str, split: str | None, report: Report) -> list[Any]:
    """The rows that one JSON object holds: under one of `DATA_KEYS`, the names of splits, or their ids; else itself.

    Args:
        value: the object.
        name: the name of its file.
        split: the split to read, if there are several.
        report: gets what is not used.

    Raises:
        DataError: if there is no such split, or it is not clear what the rows are.
    """
    if not isinstance(value, dict):
        fix = JSON_FIX
        raise DataError(Problem(f"not a JSON object: {json.dumps(value)[:60]!r}", f"{report.where}, {name}", fix))
    data_key = next((key for key in DATA_KEYS if _is_rows(value.get(key))), None)
    if data_key is not None:
        for key in sorted(value.keys() - {data_key}):
            report.notes[f"keys ignored beside the rows of a JSON file: {key}"] += 1
        rows = value[data_key]
        shown = all(isinstance(row.get("row"), dict) and "row_idx" in row for row in rows)
        return [row["row"] for row in rows] if shown else list(rows)
    if value and all(_is_rows(rows) for rows in value.values()):
        splits = {canonical(key): key for key in value}
        if splits.keys() <= SPLITS:
            chosen = choose_split(splits, split, name, report.where)
            if others := sum(len(value[key]) for other, key in splits.items() if other != chosen):
                report.notes["rows not read: other splits of a JSON file"] += others
            return list(value[splits[chosen]])
    if len(value) > 1 and all(isinstance(row, dict) for row in value.values()):
        shared = set.intersection(*(set(row) for row in value.values()))
        if not shared or all(key.isdigit() for key in shared):
            what = "the file is one JSON object of objects, and it is not clear which of them are rows"
            fix = f"{JSON_FIX}; with pandas: to_json(orient='records', lines=True)"
            raise DataError(Problem(what, f"{report.where}, {name}", fix))
        report.notes["ids of rows ignored: keys of the object in a JSON file"] += len(value)
        return list(value.values())
    return [value]


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)
