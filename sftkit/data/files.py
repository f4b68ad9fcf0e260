"""Data files: which files a name stands for, how they are read, and where a row is in them."""

from __future__ import annotations

import csv
import glob
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from sftkit import demo
from sftkit.data.cache import root
from sftkit.data.file_errors import check_encoding, copy_without_bad_lines, diagnose, is_array
from sftkit.data.hub import load_quietly
from sftkit.errors import DataError, Problem

if TYPE_CHECKING:
    from datasets import Dataset

    from sftkit.config import DataSection

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


class Read(NamedTuple):
    """Rows that were read.

    Attributes:
        rows: the rows.
        bad_lines: the number of lines that were skipped because they could not be read.
        copies: files that were read in place of others, with the same line numbers.
    """

    rows: Dataset
    bad_lines: int = 0
    copies: Mapping[Path, Path] = MappingProxyType({})


def kind_of(path: Path) -> str:
    """The kind of a file, by its suffix: the name of a reader of `datasets`."""
    return BUILDERS[path.suffix.lower()]


def find_files(name: str, where: str) -> list[Path] | None:
    """The files that a name stands for, or None if it can only be the name of a hub data set.

    Raises:
        DataError: if the name is a path, and there is nothing there or no file of a supported type.
    """
    if name == demo.NAME:
        return [demo.TRAIN if where == "data.train" else demo.EVAL]
    path = Path(name).expanduser()
    supported = f"use one of these file types: {', '.join(BUILDERS)}"
    if path.is_file():
        if path.suffix.lower() not in BUILDERS:
            raise DataError(Problem(f"unsupported file type: {name}", where, supported))
        return [path]
    if path.is_dir():
        found, nothing = list(path.rglob("*")), Problem(f"no data file in the directory {name}", where, supported)
    elif any(char in name for char in "*?["):
        found = [Path(match) for match in glob.glob(str(path), recursive=True)]
        nothing = Problem(f"no data file matches {name}", where, "correct the pattern")
    elif name.startswith((".", "/", "~")) or path.suffix.lower() in BUILDERS or name.count("/") > 1:
        raise DataError(Problem(f"no such file or directory: {name}", where, "correct the path"))
    else:
        return None
    if files := sorted(file for file in found if file.suffix.lower() in BUILDERS and file.is_file()):
        return files
    raise DataError(nothing)


def read_files(files: Sequence[Path], data: DataSection, where: str) -> Read:
    """Read files of one kind with the same columns.

    Raises:
        DataError: if the files are of several kinds or cannot be parsed; with file and line if known.
    """
    kinds = {kind_of(path) for path in files}
    if len(kinds) > 1:
        what = f"the files have different types: {', '.join(sorted(kinds))}"
        raise DataError(Problem(what, where, "use files of one type, or data.mix"))
    text = kinds <= {"json", "csv", "text"}
    try:
        if text:
            check_encoding(files, where)
        return Read(open_files(files))
    except Exception as error:  # datasets wraps whatever its readers raise
        problems = error.problems if isinstance(error, DataError) else tuple(diagnose(files, where, *kinds))
        lines = kinds == {"json"} and all(path.stat().st_size and not is_array(path) for path in files)
        if data.on_bad_row == "skip" and lines:
            return _read_good_lines(files, where, data.max_bad_rows)
        raise DataError(problems or [_unreadable(error, files, where)]) from error


def _read_good_lines(files: Sequence[Path], where: str, limit: int) -> Read:
    import xxhash

    copies: dict[Path, Path] = {}
    bad = 0
    for path in files:
        name = xxhash.xxh3_64_hexdigest(str(path.resolve()).encode())
        copies[path] = root() / "clean" / name / path.name
        bad += copy_without_bad_lines(path, copies[path], where, limit - bad)
    return Read(open_files(list(copies.values())), bad, copies)


def open_files(files: Sequence[Path], streaming: bool = False) -> Any:
    """The rows of files of one kind, as a Dataset or, if ``streaming``, an IterableDataset."""
    options = {"sep": "\t"} if files[0].suffix.lower() == ".tsv" else {}
    names = [str(path) for path in files]
    return load_quietly(kind_of(files[0]), data_files=names, split="train", streaming=streaming, **options)


def _unreadable(error: Exception, files: Sequence[Path], where: str) -> Problem:
    cause = error.__cause__ or error
    first = (str(cause).splitlines() or [type(cause).__name__])[0]
    names = ", ".join(str(path) for path in files[:3])
    return Problem(f"cannot read the data: {first}", f"{where} ({names})", "use files with the same columns and types")


def locate(files: Sequence[Path], row: int, copies: Mapping[Path, Path]) -> str:
    """``file:line`` of a row, counted from 0 over all files; the number of the row if the file has no lines.

    Args:
        copies: files that were read in place of others, with the same line numbers.
    """
    for path in files:
        number = 0
        for number, line in enumerate(_lines_of_rows(copies.get(path, path)), start=1):
            if number > row:
                return f"{path}:{line}" if line else f"{path}, row {row + 1}"
        row -= number
    return f"row {row + 1}"


def _lines_of_rows(path: Path) -> Iterator[int]:
    """The line, from 1, at which each row begins; 0 for files without lines."""
    kind = kind_of(path)
    if kind == "json" and not is_array(path):
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
