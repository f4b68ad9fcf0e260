"""What is wrong with data files that cannot be read, and how to read them anyway."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from sftkit.errors import DataError, Problem

JSON_FIX = "write one JSON object per line, or one array of objects"


def is_array(path: Path) -> bool:
    """Whether a JSON file is one array, and not a file of JSON lines."""
    with path.open("rb") as file:
        return file.read(1 << 12).lstrip().startswith(b"[")


def check_encoding(files: Sequence[Path], where: str) -> None:
    """Check that text files are UTF-8: the readers replace other bytes silently.

    Raises:
        DataError: for a file that is not UTF-8, with the line.
    """
    for path in files:
        with path.open(encoding="utf-8") as file:
            try:
                while file.read(1 << 20):
                    pass
            except UnicodeDecodeError:
                lines = enumerate(path.read_bytes().split(b"\n"), start=1)
                line = next(number for number, text in lines if text.decode("utf-8", "ignore").encode() != text)
                raise DataError(Problem("not valid UTF-8", f"{where}, {path}:{line}", "save it as UTF-8")) from None


def diagnose(files: Sequence[Path], where: str, kind: str) -> Iterator[Problem]:
    """What is wrong with files of one kind that could not be read: empty files, and the first line of invalid JSON."""
    for path in files:
        if path.stat().st_size == 0:
            yield Problem("the file is empty", f"{where}, {path}", "use a file with at least one row")
        elif kind == "json":
            yield from _diagnose_json(path, where)


def _diagnose_json(path: Path, where: str) -> Iterator[Problem]:
    if is_array(path):
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            yield Problem(f"not valid JSON: {error.msg}", f"{where}, {path}:{error.lineno}", JSON_FIX)
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip() and (what := _line_problem(line)):
                yield Problem(what, f"{where}, {path}:{number}", JSON_FIX)
                return


def _line_problem(line: bytes) -> str:
    try:
        row = json.loads(line.decode("utf-8"))
    except ValueError as error:  # also for invalid UTF-8
        return f"not valid JSON: {getattr(error, 'msg', error)}"
    return "" if isinstance(row, dict) else f"not a JSON object: {line[:60].decode('utf-8', 'replace')!r}"


def copy_without_bad_lines(path: Path, copy: Path, where: str, limit: int) -> int:
    """Copy a file of JSON lines; lines that are not JSON objects become blank, so that line numbers stay the same.

    Returns:
        The number of blanked lines.

    Raises:
        DataError: if there are more than ``limit`` of them.
    """
    bad = 0
    copy.parent.mkdir(parents=True, exist_ok=True)
    partial = copy.with_name(f"{copy.name}.{os.getpid()}.partial")  # another process may write the same copy
    try:
        with path.open("rb") as file, partial.open("wb") as out:
            for line in file:
                if line.strip() and _line_problem(line):
                    bad, line = bad + 1, b"\n"
                    if bad > limit:
                        what = f"more than {limit} lines are not JSON objects"
                        fix = "fix the file, or increase data.max_bad_rows"
                        raise DataError(Problem(what, f"{where}, {path}", fix))
                out.write(line)
        partial.replace(copy)
    finally:
        partial.unlink(missing_ok=True)
    return bad
