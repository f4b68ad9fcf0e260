"""Which files a name stands for: a file, a pattern, or a directory, local or remote."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from sftkit import demo
from sftkit.data.opening import MAGIC, SUPPORTED, filesystem_of, is_remote, kind_of, suffixes_of
from sftkit.data.splits import by_split, choose_split, is_data_path
from sftkit.errors import DataError, Problem


@dataclass(frozen=True)
class Found:
    """Files to read.

    Attributes:
        names: their paths or URLs.
        saved: whether the only name is a directory that `datasets` saved with ``save_to_disk``.
        notes: what was not read, as counts by description.
        listed: of several names that are read together, how many files each stands for.
    """

    names: tuple[str, ...]
    saved: bool = False
    notes: Mapping[str, int] = field(default_factory=dict)
    listed: Mapping[str, int] = field(default_factory=dict)


def find_files(name: str, split: str | None, where: str) -> Found | None:
    """The files that a name stands for, or None if it can only be the name of a hub data set.

    Args:
        name: a path, a pattern, or a URL.
        split: the split to read if the names of several files stand for splits; None is for evaluation data.
        where: the configuration key, for errors.

    Raises:
        DataError: if the name is a path, and there is nothing there, no file of a supported type, or not this split.
    """
    if name == demo.NAME:
        return Found((str(demo.TRAIN if where == "data.train" else demo.EVAL),))
    if is_remote(name):
        return _find_remote(name, split, where)
    path = Path(name).expanduser()
    if path.is_file():
        return _one_file(str(path), where)
    if path.is_dir():
        if any((path / marker).is_file() for marker in ("state.json", "dataset_dict.json")):
            return Found((str(path),), saved=True)
        inside = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
        return _in_directory(str(path), inside, split, where)
    if any(char in name for char in MAGIC):
        matches = [match for match in glob.glob(str(path), recursive=True) if Path(match).is_file()]
        return _of_pattern(name, str(path), matches, split, where)
    if name.startswith((".", "/", "~")) or kind_of(name) or name.count("/") > 1:
        raise DataError(Problem(f"no such file or directory: {os.path.abspath(path)}", where, "correct the path"))
    return None


def _find_remote(url: str, split: str | None, where: str) -> Found:
    system, path = filesystem_of(url, where)
    on_web = url.startswith(("http://", "https://"))
    try:
        if any(char in url for char in ("*[" if on_web else MAGIC)):
            return _with_protocol(system, _of_pattern(url, path, system.glob(path), split, where))
        if kind_of(url) is None and not on_web and system.isdir(path):
            root = path.rstrip("/")
            inside = [str(file)[len(root) :].lstrip("/") for file in system.find(path)]
            return _with_protocol(system, _in_directory(root, inside, split, where))
        exists = on_web or system.exists(path)
    except DataError:
        raise
    except Exception as error:  # each file system has its own
        first = (str(error).splitlines() or [""])[0] or type(error).__name__
        fix = "check the URL, the network and your credentials"
        raise DataError(Problem(f"cannot list {url}: {first}", where, fix)) from error
    if not exists:
        raise DataError(Problem(f"no such file or directory: {url}", where, "correct the URL"))
    return _one_file(url, where)


def _with_protocol(system: Any, found: Found) -> Found:
    return dataclasses.replace(found, names=tuple(str(system.unstrip_protocol(name)) for name in found.names))


def _one_file(name: str, where: str) -> Found:
    if kind_of(name) is None:
        raise DataError(Problem(f"unsupported file type: {name}", where, SUPPORTED))
    return Found((name,))


def _of_pattern(name: str, pattern: str, matches: Iterable[str], split: str | None, where: str) -> Found:
    """The data files among matches; names in the pattern itself, without wildcards, stand for no split."""
    first = next(at for at, char in enumerate(pattern) if char in MAGIC)
    base = pattern[:first].rpartition("/")[0]
    named_hidden = any(part.startswith(".") for part in PurePosixPath(pattern[len(base) :]).parts)
    inside = [match[len(base) :].lstrip("/") for match in matches]
    paths = sorted(path for path in inside if kind_of(path) and (named_hidden or is_data_path(path)))
    if not paths:
        looked = name if is_remote(name) else os.path.abspath(pattern)
        raise DataError(Problem(f"no data file matches {looked}", where, "correct the pattern"))
    splits = by_split(paths)
    if len(splits) > 1:
        chosen, notes = _chosen(paths, splits, split, name, where)
    else:
        chosen, notes = paths, {}
    return Found(tuple(f"{base}/{path}" if base or pattern.startswith("/") else path for path in chosen), notes=notes)


def _in_directory(name: str, inside: Iterable[str], split: str | None, where: str) -> Found:
    paths = sorted(path for path in inside if kind_of(path) and is_data_path(path))
    if not paths:
        raise DataError(Problem(f"no data file in the directory {name}", where, SUPPORTED))
    splits = by_split(paths)
    chosen, notes = _chosen(paths, splits, split, name, where) if splits else (paths, {})
    return Found(tuple(f"{name}/{path}" for path in chosen), notes=notes)


def _chosen(
    paths: Sequence[str], splits: Mapping[str, Sequence[str]], split: str | None, name: str, where: str
) -> tuple[Sequence[str], dict[str, int]]:
    """The paths of one split, and how many others are not read."""
    chosen = choose_split(splits, split, name, where)
    read = set(splits[chosen])
    notes: Counter[str] = Counter()
    for path in paths:
        if path not in read:
            others = [other for other, some in splits.items() if path in some]
            notes[f"files not read: {f'split {others[0]}' if others else 'no split in their names'}"] += 1
    return splits[chosen], dict(notes)


def kind_of_all(names: Sequence[str], where: str) -> str:
    """The kind of files that are read together.

    Raises:
        DataError: if there are several; names a file of each.
    """
    examples: dict[str, str] = {}
    for name in names:
        examples.setdefault(kind_of(name) or "", name)
    if len(examples) > 1:
        found = ", ".join(f"{suffixes_of(example)[0]} ({example})" for example in examples.values())
        fix = "name files of one type, or use data.mix"
        raise DataError(Problem(f"the files have different types: {found}", where, fix))
    return next(iter(examples))
