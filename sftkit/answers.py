"""Answers of checks that take seconds, kept in the cache directory under everything that they depend on.

Commands keep and recall them. Only what is the same in each process is kept: never an error, and nothing in a process
that has loaded code of the user or a plugin of another distribution. `sftkit cache clear` removes them.
"""

from __future__ import annotations

import datetime
import functools
import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from sftkit import DISTRIBUTION
from sftkit.errors import RunError
from sftkit.machine import describe_machine
from sftkit.ranks import world_size
from sftkit.storage import ANSWERS, cache_directory, write_json
from sftkit.user_modules import finders

if TYPE_CHECKING:
    from sftkit.config import RunConfig
    from sftkit.plugin.selected import PluginSet

#: Variables of a terminal, a session or a desktop, on which no answer depends; all others are part of each key.
_OF_SESSIONS = re.compile(
    r"_|PWD|OLDPWD|SHLVL|TERM.*|COLORTERM|COLUMNS|LINES|NO_COLOR|FORCE_COLOR|WINDOWID|DISPLAY|WAYLAND_DISPLAY|SSH_.*"
    r"|TMUX.*|STY|DBUS_.*|XDG_(SESSION|RUNTIME|SEAT|VTNR).*|LS_COLORS|PS\d|PROMPT.*|HIST.*|PAGER|LESS.*|EDITOR|VISUAL"
    r"|VTE_VERSION|SESSION_MANAGER|GPG_.*|INVOCATION_ID|JOURNAL_STREAM|PYTEST_CURRENT_TEST"
)
_FUNCTION = re.compile(r"[\w.]+:[\w.]+")  # the name of a function of the user's, as an option

#: The environment in which the command was started, and not as libraries change it; None while no answer is used.
_environment: Mapping[str, str] | None = None


@contextmanager
def using_answers() -> Iterator[None]:
    """Let `recall` and `keep` work inside, in a process that has not imported transformers yet.

    Whatever else a process has done to the libraries, such as to register a model or to replace a function, no key
    could cover.
    """
    global _environment
    before, _environment = _environment, None if "transformers" in sys.modules else dict(os.environ)
    try:
        yield
    finally:
        _environment = before


def set_aside() -> None:
    """Recall and keep nothing from now on, in a process that has loaded someone else's code: it may change anything."""
    global _environment
    _environment = None


def recall(question: str, parts: Mapping[str, Any]) -> Any:
    """The answer that `keep` has kept for the same question, parts and surroundings; None if there is none."""
    path = _path(question, parts)
    try:
        return json.loads(path.read_text(encoding="utf-8"))["answer"] if path is not None else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(question: str, parts: Mapping[str, Any], answer: Any) -> None:
    """Keep an answer for `recall`; without a cache that can be written, nothing is kept.

    Args:
        question: a name for what was computed.
        parts: what the answer depends on besides the code, the installed packages, the environment and the machine,
            which are part of each key. Parts that JSON does not have, such as functions, are never kept.
        answer: plain data.
    """
    if (path := _path(question, parts)) is None:
        return
    with suppress(OSError, TypeError, ValueError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"question": question, "answer": answer})


def parts_of_run(config: RunConfig, plugins: PluginSet, *paths: str) -> dict[str, Any] | None:
    """What of a configuration can decide about its model and its batches, with the code of its plugins.

    Args:
        config: the run as resolved.
        plugins: the selected plugins.
        paths: files and directories that it depends on besides those that the configuration names.

    Returns:
        The parts; None if a plugin or a function of someone else takes part, if code comes with the model, or if the
        run is one of several processes or does not use the cache.
    """
    foreign = any(item.distribution != DISTRIBUTION for item in plugins.selected)
    if foreign or world_size() > 1 or config.model.trust_remote_code or not config.data.cache:
        return None
    options = config.plugins
    if any(map(_names_function, _values(options))):
        return None
    return {
        "model": config.model.model_dump(mode="json"),
        "data": config.data.model_dump(mode="json", exclude={"train", "eval", "mix"}),
        "train": {name: value for name, value in config.train.items() if name != "output_dir"},
        "evaluate": config.evaluate.model_dump(mode="json"),
        "run": config.run.model_dump(mode="json", exclude={"modules"}),
        "plugins": options,
        "files": [on_disk(Path(path)) for path in sorted({*_paths(config, plugins), *paths})],
        "code": _code({type(item.plugin).__module__.partition(".")[0] for item in plugins.selected}),
    }


class Warnings(logging.Handler):
    """A context that notes whether loggers warn of something, which an answer that is kept would leave out.

    Args:
        names: of the loggers.

    Attributes:
        any: whether one did.
    """

    def __init__(self, *names: str) -> None:
        super().__init__(logging.WARNING)
        self._loggers, self.any = [*map(logging.getLogger, names)], False

    def emit(self, record: logging.LogRecord) -> None:
        """Note it."""
        self.any = True

    def __enter__(self) -> Warnings:
        for logger in self._loggers:
            logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        for logger in self._loggers:
            logger.removeHandler(self)


def _values(options: Any) -> Iterable[Any]:
    if isinstance(options, Mapping):
        options = list(options.values())
    if not isinstance(options, list | tuple):
        return [options]
    return [value for each in options for value in _values(each)]


def _names_function(value: Any) -> bool:
    return isinstance(value, str) and bool(_FUNCTION.fullmatch(value))


def _paths(config: RunConfig, plugins: PluginSet) -> set[str]:
    """The files and directories that options of plugins name, and that of the model."""
    named = [config.model.name, config.model.tokenizer]
    for item in plugins.selected:
        named += _values([config.plugins.get(item.name, {}).get(option) for option in item.plugin.paths])
    return {name for name in named if isinstance(name, str) and Path(name).exists()}


def on_disk(path: Path) -> list[Any]:
    """What changes when a file is written, or any file in a directory; for `keep` and `recall`."""
    if not path.exists():
        return [str(path)]
    files = [path] if path.is_file() else sorted(each for each in path.rglob("*") if each.is_file())
    stats = [(str(file), file.stat()) for file in files]
    return [[name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino] for name, stat in stats]


def _path(question: str, parts: Mapping[str, Any]) -> Path | None:
    if _environment is None or finders():
        return None
    import xxhash

    try:
        text = json.dumps([question, parts, _surroundings(_environment)], sort_keys=True, default=_plain)
        return cache_directory() / ANSWERS / f"{xxhash.xxh3_128_hexdigest(text.encode())}.json"
    except (TypeError, ValueError, OSError, RunError):  # JSON does not have it, a file has gone, or there is no home
        return None


def _plain(value: Any) -> str:
    """Values of options that JSON does not have, but that are the same in each process."""
    if isinstance(value, datetime.date | PurePath):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form that is the same in each process")


def _surroundings(environment: Mapping[str, str]) -> list[Any]:
    """The machine with its devices, the interpreter, the environment, the installed packages, and sftkit's code."""
    variables = {name: value for name, value in environment.items() if not _OF_SESSIONS.fullmatch(name)}
    return [describe_machine(), variables, _packages(tuple(sys.path)), _code({"sftkit"})]


@functools.lru_cache(maxsize=4)
def _packages(places: tuple[str, ...]) -> list[Any]:
    """The metadata of each installed distribution, with the time at which it was written."""
    found = []
    for place in filter(os.path.isdir, map(os.path.abspath, places)):
        for entry in os.scandir(place):
            if entry.name.endswith((".dist-info", ".egg-info", ".egg-link", ".pth")):
                found.append([entry.name, entry.stat().st_mtime_ns])
    return sorted(found)


def _code(packages: set[str]) -> list[Any]:
    """The source files of packages that are imported, with their sizes and the times at which they were written."""
    return [_files(name, getattr(sys.modules.get(name), "__file__", None) or "") for name in sorted(packages)]


@functools.lru_cache(maxsize=16)
def _files(name: str, file: str) -> list[Any]:
    root = Path(file)
    found = root.parent.rglob("*") if root.name == "__init__.py" else [root]
    files = sorted(each for each in found if each.is_file() and "__pycache__" not in each.parts)
    return [name, *([str(each), (stat := each.stat()).st_size, stat.st_mtime_ns] for each in files)]
