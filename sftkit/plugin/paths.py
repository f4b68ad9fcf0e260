"""Paths in a configuration: those of a file are relative to its folder, all others to the working directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sftkit import demo
from sftkit.config import was_loaded
from sftkit.config.source import ConfigSource, Key
from sftkit.config.train_fields import FILE_FIELDS
from sftkit.data.opening import MAGIC, is_remote, kind_of
from sftkit.errors import Problem

#: Whether a name can only be a path, and not one of the hub.
Looks = Callable[[str], bool]


def is_data(name: str) -> bool:
    """Whether a name of data can only be a path, or a pattern."""
    return bool(kind_of(name)) or name.count("/") > 1 or any(char in name for char in MAGIC)


def is_model(name: str) -> bool:
    """Whether a name of a model can only be a path."""
    return name.count("/") > 1 or "\\" in name


def is_option(name: str) -> bool:
    """Whether a value of a plugin's option that may be a path can only be one."""
    return "/" in name or "\\" in name or bool(Path(name).suffix)


def is_any(name: str) -> bool:
    """For values that are always paths."""
    return True


_PLACES: dict[Key, Looks] = {
    ("model", "name"): is_model,
    ("model", "tokenizer"): is_model,
    ("data", "train"): is_data,
    ("data", "eval"): is_data,
    ("data", "mix"): is_data,
    ("data", "prepared"): is_any,
    ("run", "modules"): is_any,
    **{("train", name): is_any for name in FILE_FIELDS},
}


def locate(value: str, folder: Path, looks: Looks) -> tuple[str, str]:
    """The path that a value stands for, from the working directory.

    It is a path if it is there, or can only be one: it begins with ``./`` or ``../``, or ``looks`` like one. Any other
    is a name of the hub, or of what a plugin knows.

    Args:
        value: a path, a pattern, a URL or another name.
        folder: of the configuration file that has it.
        looks: whether a name can only be a path.

    Returns:
        The value, and the path that it should have been if it is only there from the working directory; else "".
    """
    expanded = os.path.expanduser(value)
    if not value or os.path.isabs(expanded) or is_remote(value) or folder.resolve() == Path.cwd():
        return expanded, ""
    if value == demo.NAME or value.lstrip().startswith("{"):  # the embedded one, or JSON
        return value, ""
    joined = os.path.join(folder, value)
    if not os.path.lexists(joined) and os.path.exists(value):
        return value, os.path.relpath(value, folder)
    if not (value.startswith((".", f".{os.sep}")) or os.path.lexists(joined) or looks(value)):
        return value, ""
    plain = os.path.normpath(joined)
    if os.path.realpath(plain) != os.path.realpath(joined):  # a symlink comes before `..`
        return joined, ""
    return plain if os.path.isabs(plain) or looks(plain) or os.path.exists(plain) else os.path.join(".", plain), ""


def locate_all(source: ConfigSource) -> tuple[ConfigSource, list[Problem]]:
    """A source whose paths are relative to the working directory, and what is wrong with them."""
    problems: list[Problem] = []
    values = {name: dict(value) if isinstance(value, dict) else value for name, value in source.values.items()}
    located = ConfigSource(values, dict(source.places), dict(source.references), list(source.files))
    for section in ("model", "data"):
        located.lengthen(section)
    for (section, name), looks in _PLACES.items():
        inner = located.values.get(section)
        if isinstance(inner, dict) and name in inner:
            inner[name] = _located(inner[name], (section, name), looks, located, problems)
    return located, problems


def _located(value: Any, key: Key, looks: Looks, source: ConfigSource, problems: list[Problem]) -> Any:
    if isinstance(value, list):
        return [_located(item, (*key, str(n)), looks, source, problems) for n, item in enumerate(value)]
    if isinstance(value, dict) and key == ("data", "mix"):
        return dict(_located_names(value, key, looks, source, problems))
    if isinstance(value, dict) and key == ("data", "eval"):
        return {name: _located(item, (*key, str(name)), looks, source, problems) for name, item in value.items()}
    if not isinstance(value, str):
        return value
    place = source.place(key)
    if place is None or place.folder is None:
        return value
    if was_loaded(value):
        what = f"the run had a {value} here, which a file cannot hold"
        problems.append(Problem(what, source.where(key), "name a directory, a file or a hub name, or pass the object"))
    found, better = locate(value, place.folder, looks)
    if better:
        problems.append(misplaced(value, place.folder, better, source.where(key)))
    return found


def _located_names(
    mix: dict[Any, Any], key: Key, looks: Looks, source: ConfigSource, problems: list[Problem]
) -> Iterator[tuple[Any, Any]]:
    for name, weight in mix.items():
        found = _located(name, (*key, str(name)), looks, source, problems)
        if (place := source.place((*key, str(name)))) is not None:
            located: Key = (*key, str(found))
            source.places[located] = place
        yield found, weight


def module_folders(source: ConfigSource) -> list[str]:
    """Where the user's own modules are searched before the working directory: ``run.modules``, or beside the files."""
    section = source.values.get("run")
    given = section.get("modules") if isinstance(section, dict) else None
    if given is None:
        given = [str(file.parent) for file in source.files if file != demo.CONFIG]
    folders = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    return list(dict.fromkeys(os.path.abspath(folder) for folder in folders if isinstance(folder, str)))


def misplaced(value: str, folder: Path, better: str, where: str) -> Problem:
    """The problem of a path in a file that was meant from the working directory."""
    what = f"there is no {os.path.abspath(os.path.join(folder, value))}: paths in a file are relative to the file"
    fix = f"write {better} for {os.path.abspath(value)}"
    return Problem(what, where, fix)


def absolute(value: str, looks: Looks, base: str = "") -> str:
    """A path as an absolute one; other names as they are.

    Args:
        value: a path, a pattern, a URL or another name.
        looks: whether a name can only be a path.
        base: to what it is relative; by default the working directory.
    """
    if is_remote(value) or value == demo.NAME or not value or value.lstrip().startswith("{"):
        return value
    path = os.path.join(base, os.path.expanduser(value))
    if value.startswith((".", "~", "/")) or looks(value) or os.path.lexists(path):
        return os.path.abspath(path)
    return value


def absolute_at(key: Key, value: Any, base: str = "") -> Any:
    """A value of the configuration with absolute paths.

    Args:
        key: section and name.
        value: with relative paths.
        base: to what they are relative; by default the working directory.
    """
    looks = _PLACES.get(key)
    if looks is None:
        return value
    if isinstance(value, str):
        return absolute(value, looks, base)
    if isinstance(value, list | tuple):
        return [absolute_at(key, item, base) for item in value]
    if isinstance(value, dict) and key == ("data", "mix"):
        return {absolute_at(key, name, base): weight for name, weight in value.items()}
    if isinstance(value, dict) and key == ("data", "eval"):
        return {name: absolute_at(key, item, base) for name, item in value.items()}
    return value
