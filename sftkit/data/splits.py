"""The splits that the names of files and folders stand for, as `datasets` reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from sftkit.errors import DataError, Problem

TRAIN, HELD_OUT = "train", ("validation", "test")
SHARD = re.compile(r"data/(?P<split>[^/]+)-\d{5}-of-\d{5}[^/]*\.[^/]*")
#: Files that describe data. `datasets` ignores all of them but state.json, which it writes beside saved rows.
DESCRIPTIONS = frozenset(
    {"README.md", "config.json", "dataset_dict.json", "dataset_info.json", "dataset_infos.json", "state.json"}
)


def is_data_path(path: str) -> bool:
    """Whether a path inside a directory can be data: not hidden, in no folder like ``__pycache__``, no description."""
    *folders, name = PurePosixPath(path).parts
    hidden = any(part.startswith(".") for part in (*folders, name)) or any(part.startswith("__") for part in folders)
    return not hidden and name not in DESCRIPTIONS


def by_split(paths: Sequence[str]) -> dict[str, list[str]]:
    """Paths inside a directory by split; empty if their names stand for none.

    The first rule that fits any path decides, and paths that do not fit it belong to no split: shards
    ``data/SPLIT-00000-of-00001.*``; then folders; then files with a word such as ``train``, ``dev`` or ``test``,
    separated by ``-``, ``.``, ``_``, a space or a digit. A name with words of two splits belongs to both.

    Sources:
        `datasets.data_files.get_data_patterns`.
    """
    from datasets.data_files import NON_WORDS_CHARS, SPLIT_KEYWORDS

    shards: dict[str, list[str]] = {}
    for path in paths:
        if found := SHARD.fullmatch(path):
            shards.setdefault(found["split"], []).append(path)
    if shards:
        return shards
    separator = f"[{re.escape(NON_WORDS_CHARS.replace('0-9', ''))}0-9]"
    for in_folders in (True, False):
        found_paths: dict[str, list[str]] = {}
        for split, words in SPLIT_KEYWORDS.items():
            word = f"(?:.*{separator})?(?:{'|'.join(words)})"
            pattern = re.compile(f"{word}(?:{separator}.*)?" if in_folders else f"{word}{separator}.*")
            for path in paths:
                *folders, name = PurePosixPath(path).parts
                if any(map(pattern.fullmatch, folders if in_folders else [name])):
                    found_paths.setdefault(str(split), []).append(path)
        if found_paths:
            return found_paths
    return {}


def canonical(split: str) -> str:
    """The split that a word stands for: ``validation`` for ``dev``; other words stand for themselves."""
    from datasets.data_files import SPLIT_KEYWORDS

    return next((str(name) for name, words in SPLIT_KEYWORDS.items() if split in words), split)


def choose_split(available: Mapping[str, object], wanted: str | None, what: str, where: str) -> str:
    """The split to read.

    Args:
        available: the splits by name.
        wanted: the name of one. None is for evaluation data: its only split, or ``validation``, or else ``test``.
        what: what the splits are part of, for errors.
        where: the configuration key that names it.

    Raises:
        DataError: if there is no such split.
    """
    names = list(available)
    if wanted is None:
        options = names if len(names) == 1 else [name for name in HELD_OUT if name in names]
        fix = "name one of its files"
    else:
        options = [name for name in (wanted, canonical(wanted)) if name in names]
        fix = f"set data.split to one of: {', '.join(names)}"
    if not options:
        missing = f"no split {wanted!r}" if wanted is not None else f"neither {' nor '.join(HELD_OUT)}"
        raise DataError(Problem(f"{what} has {missing}, but {', '.join(names)}", where, fix))
    return options[0]
