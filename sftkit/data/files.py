"""Data files: which a name stands for, of what kind, where a row is in them, and what is wrong with them."""

from __future__ import annotations

import csv
import glob
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sftkit import demo
from sftkit.errors import DataError, Problem

BUILDERS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}


def kind_of(path: Path) -> str:
    """The reader for a file, by its ending."""
    return BUILDERS[path.suffix.lower()]


def find_files(name: str, where: str) -> list[Path] | None:
    """The files that a name stands for, or None where it can only be a hub name.

    Raises:
        DataError: if the name is a path with nothing there, or with no file of a kind that can be read.
    """
    if name == demo.NAME:
        return [demo.TRAIN if where == "data.train" else demo.EVAL]
    path = Path(name).expanduser()
    if path.is_file():
        if path.suffix.lower() not in BUILDERS:
            fix = f"convert it to one of {', '.join(BUILDERS)}"
            raise DataError(Problem(f"{name} is of an unknown kind", where, fix))
        return [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in BUILDERS and p.is_file())
        if not files:
            fix = f"put files of one kind into it: {', '.join(BUILDERS)}"
            raise DataError(Problem(f"no data file in the directory {name}", where, fix))
        return files
    if any(char in name for char in "*?["):
        files = sorted(Path(found) for found in glob.glob(str(path), recursive=True))
        files = [file for file in files if file.is_file() and file.suffix.lower() in BUILDERS]
        if not files:
            raise DataError(Problem(f"no data file matches {name}", where, "correct the pattern"))
        return files
    if name.startswith((".", "/", "~")) or path.suffix.lower() in BUILDERS or name.count("/") > 1:
        raise DataError(Problem(f"no such file or directory: {name}", where, "correct the path"))
    return None


def locate(files: Sequence[Path], row: int, instead: Mapping[Path, Path]) -> str:
    """``file:line`` of a row, counted from 0 over all files; the row's number in the file where it has no lines.

    Args:
        instead: copies that were read instead of some of the files, with the same lines.
    """
    for path in files:
        number = 0
        for number, line in enumerate(_lines_of_rows(instead.get(path, path)), start=1):
            if number > row:
                return f"{path}:{line}" if line else f"{path}, row {row + 1}"
        row -= number
    return f"row {row + 1}"


def _lines_of_rows(path: Path) -> Iterator[int]:
    """The line, from 1, at which each row begins; 0 where rows have no lines of their own."""
    kind = kind_of(path)
    if kind == "json" and not _is_array(path):
        with path.open("rb") as file:
            yield from (number for number, line in enumerate(file, start=1) if line.strip())
    elif kind == "csv":
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            next(reader, None)
            start = reader.line_num
            for cells in reader:
                if cells:
                    yield start + 1
                start = reader.line_num
    elif kind == "text":
        with path.open("rb") as file:
            yield from (number for number, _ in enumerate(file, start=1))
    else:
        yield from (0 for _ in range(_count_rows(path)))


def _is_array(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1 << 12).lstrip().startswith(b"[")


def _count_rows(path: Path) -> int:
    import pyarrow as pa
    from pyarrow import parquet

    kind = kind_of(path)
    if kind == "parquet":
        return parquet.ParquetFile(path).metadata.num_rows
    if kind == "json":
        return len(json.loads(path.read_text(encoding="utf-8")))
    with pa.memory_map(str(path)) as file:
        return sum(len(batch) for batch in pa.ipc.open_stream(file))


def without_bad_lines(path: Path, copy: Path, where: str, limit: int) -> int:
    """Copy a file of JSON lines; those that are no JSON object are blank in the copy, so that line numbers stay.

    Returns:
        How many were blanked.

    Raises:
        DataError: if there are more than ``limit`` of them, or the file is one JSON array.
    """
    fix = "mend the file, or raise data.max_bad_rows"
    if _is_array(path):
        raise DataError(list(diagnose([path], where)))
    bad = 0
    copy.parent.mkdir(parents=True, exist_ok=True)
    partial = copy.with_name(f"{copy.name}.{os.getpid()}.partial")  # another process may write the same copy
    try:
        with path.open("rb") as file, partial.open("wb") as out:
            for line in file:
                if line.strip() and not _is_object(line):
                    bad, line = bad + 1, b"\n"
                    if bad > limit:
                        what = f"more than {limit} lines are no JSON object"
                        raise DataError(Problem(what, f"{where}, {path}", fix))
                out.write(line)
        partial.replace(copy)
    finally:
        partial.unlink(missing_ok=True)
    return bad


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode("utf-8")), dict)
    except ValueError:
        return False


def check_encoding(files: list[Path], where: str) -> None:
    """The readers replace what is not UTF-8 without a word."""
    for path in files:
        if BUILDERS[path.suffix.lower()] not in ("json", "csv", "text"):
            continue
        with path.open(encoding="utf-8") as file:
            try:
                while file.read(1 << 20):
                    pass
            except UnicodeDecodeError:
                lines = path.read_bytes().split(b"\n")
                line = next(number for number, text in enumerate(lines, start=1) if not _is_utf8(text))
                fix = "save the file as UTF-8"
                raise DataError(Problem("not valid UTF-8", f"{where}, {path}:{line}", fix)) from None


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def diagnose(files: list[Path], where: str) -> Iterator[Problem]:
    """What is wrong with files that could not be read: emptiness, the first line that is no JSON."""
    for path in files:
        place = f"{where}, {path}"
        if path.stat().st_size == 0:
            yield Problem("the file is empty", place, "give a file with rows")
            continue
        if BUILDERS[path.suffix.lower()] not in ("json", "csv", "text"):
            continue
        text = path.read_text(encoding="utf-8")
        if BUILDERS[path.suffix.lower()] == "json":
            yield from _diagnose_json(text, path, where)


def _diagnose_json(text: str, path: Path, where: str) -> Iterator[Problem]:
    fix = "one JSON object a line, or one array of objects"
    try:
        if text.lstrip().startswith("["):
            json.loads(text)
            return
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    yield Problem(f"not valid JSON: {error.msg}", f"{where}, {path}:{number}", fix)
                    return
                if not isinstance(row, dict):
                    yield Problem(f"a row is no JSON object: {line[:60]!r}", f"{where}, {path}:{number}", fix)
                    return
    except json.JSONDecodeError as error:
        yield Problem(f"not valid JSON: {error.msg}", f"{where}, {path}:{error.lineno}", fix)
