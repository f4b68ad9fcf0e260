"""Where rows come from: files, globs, directories, hub names, and loaded objects."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit import demo
from sftkit.errors import DataError, Problem

if TYPE_CHECKING:
    from datasets import Dataset

    from sftkit.config import RunConfig

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


def load_sources(config: RunConfig, train: Any = None, evaluation: Any = None) -> dict[str, Dataset]:
    """Rows by split: ``train`` and the evaluation sets by name.

    Args:
        config: the run as resolved.
        train: a loaded object instead of ``data.train``: a Dataset, a DatasetDict, or a list of rows.
        evaluation: the same for ``data.eval``, or a dict of several by name.

    Raises:
        DataError: if something is not there, cannot be read or has no rows.
    """
    data = config.data
    rows = as_rows(train, data.split, "data.train") if train is not None else read(data.train, config, "data.train")
    splits = {"train": rows}
    if evaluation is not None:
        named = evaluation if _is_several(evaluation) else {"eval": evaluation}
        splits |= {name: as_rows(value, "train", f"data.eval.{name}") for name, value in named.items()}
    elif isinstance(data.eval, float):
        if len(rows) < 2:
            mend = "give an evaluation file, or more rows"
            raise DataError(Problem(f"{len(rows)} rows cannot be split", "data.eval", mend))
        parts = rows.train_test_split(test_size=data.eval, seed=int(config.train.get("seed", 42)))
        splits = {"train": parts["train"], "eval": parts["test"]}
    elif isinstance(data.eval, dict):
        splits |= {name: read(value, config, f"data.eval.{name}") for name, value in data.eval.items()}
    elif data.eval is not None:
        splits["eval"] = read(data.eval, config, "data.eval")
    for name, value in splits.items():
        if not len(value):
            where = "data.train" if name == "train" else f"data.eval ({name})"
            raise DataError(Problem("the data has no rows", where, "give data with rows"))
    return splits


def _is_several(evaluation: Any) -> bool:
    from datasets import DatasetDict

    return isinstance(evaluation, dict) and not isinstance(evaluation, DatasetDict)


def as_rows(value: Any, split: str, where: str) -> Dataset:
    """A loaded object as a Dataset.

    Raises:
        DataError: if it is something else than a Dataset, a DatasetDict with ``split``, or a list of dicts.
    """
    from datasets import Dataset, DatasetDict, IterableDataset

    if isinstance(value, Dataset):
        return value
    if isinstance(value, DatasetDict):
        if split not in value:
            mend = f"set data.split to one of: {', '.join(value)}"
            raise DataError(Problem(f"the DatasetDict has no split {split!r}", where, mend))
        return value[split]
    if isinstance(value, list) and all(isinstance(row, dict) for row in value):
        return Dataset.from_list(value)
    if isinstance(value, IterableDataset):
        mend = "load it as a Dataset, or take its first rows with Dataset.from_list(list(data.take(n)))"
        raise DataError(Problem("streamed data is not supported", where, mend))
    mend = "pass a path, a Dataset, a DatasetDict, or a list of dicts"
    raise DataError(Problem(f"{type(value).__name__} is no data", where, mend))


def read(source: str | list[str], config: RunConfig, where: str) -> Dataset:
    """Read one source: all its files are of one kind and have the same columns.

    Raises:
        DataError: if a file is missing, of an unknown kind, or cannot be parsed; with file and line where known.
    """
    from datasets import load_dataset

    names = [source] if isinstance(source, str) else list(source)
    files = [path for name in names if (found := find_files(name, where)) is not None for path in found]
    if not files:
        if len(names) > 1:
            raise DataError(Problem("hub data sets are named one at a time", where, "give one name, or files"))
        return _read_hub(names[0], config, where)
    kinds = {BUILDERS[path.suffix.lower()] for path in files}
    if len(kinds) > 1:
        raise DataError(Problem(f"the files are of several kinds: {', '.join(sorted(kinds))}", where, "give one kind"))
    _check_encoding(files, where)
    options = {"sep": "\t"} if files[0].suffix.lower() == ".tsv" else {}
    with _quiet():
        try:
            return load_dataset(kinds.pop(), data_files=[str(path) for path in files], split="train", **options)
        except Exception as error:  # datasets wraps whatever its readers raise
            raise DataError(list(_diagnose(files, where)) or [_unreadable(error, files, where)]) from error


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
            mend = f"convert it to one of {', '.join(BUILDERS)}"
            raise DataError(Problem(f"{name} is of an unknown kind", where, mend))
        return [path]
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in BUILDERS and p.is_file())
        if not files:
            mend = f"put files of one kind into it: {', '.join(BUILDERS)}"
            raise DataError(Problem(f"no data file in the directory {name}", where, mend))
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


def _read_hub(name: str, config: RunConfig, where: str) -> Dataset:
    from datasets import load_dataset

    try:
        with _quiet():
            return load_dataset(name, config.data.subset, split=config.data.split)
    except Exception as error:  # the hub's client raises many kinds; each means that this name gave no data
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        mend = "check the name, data.subset, data.split and the network; a local path must exist"
        raise DataError(Problem(f"cannot load the data set {name!r}: {first}", where, mend)) from error


def _check_encoding(files: list[Path], where: str) -> None:
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
                mend = "save the file as UTF-8"
                raise DataError(Problem("not valid UTF-8", f"{where}, {path}:{line}", mend)) from None


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _unreadable(error: Exception, files: list[Path], where: str) -> Problem:
    cause = error.__cause__ or error
    first = (str(cause).splitlines() or [type(cause).__name__])[0]
    names = ", ".join(str(path) for path in files[:3])
    return Problem(f"cannot be read: {first}", f"{where} ({names})", "the files must have the same columns and types")


def _diagnose(files: list[Path], where: str) -> Iterator[Problem]:
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
    mend = "one JSON object a line, or one array of objects"
    try:
        if text.lstrip().startswith("["):
            json.loads(text)
            return
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    yield Problem(f"not valid JSON: {error.msg}", f"{where}, {path}:{number}", mend)
                    return
                if not isinstance(row, dict):
                    yield Problem(f"a row is no JSON object: {line[:60]!r}", f"{where}, {path}:{number}", mend)
                    return
    except json.JSONDecodeError as error:
        yield Problem(f"not valid JSON: {error.msg}", f"{where}, {path}:{error.lineno}", mend)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of datasets: reading a file is told by the count of its rows."""
    import datasets

    were_on = datasets.is_progress_bar_enabled() if hasattr(datasets, "is_progress_bar_enabled") else True
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_on:
            datasets.enable_progress_bars()
