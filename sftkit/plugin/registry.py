"""Installed plugins: found without importing them, loaded one by one, and checked against this machine."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Iterable, Mapping
from importlib import metadata
from typing import Any

from sftkit.errors import ConfigError, Problem, nearest
from sftkit.plugin.base import Plugin, option_names
from sftkit.plugin.requirements import has_gpu, requirement_problem
from sftkit.plugin.versions import api_problem
from sftkit.user_modules import import_user_module

GROUP = "sftkit"


def discover() -> dict[str, list[metadata.EntryPoint]]:
    """The installed plugins' entry points by name; nothing is imported."""
    return {name: [*points] for name, points in _discovered(_installed()).items()}


@functools.lru_cache(maxsize=4)
def _discovered(installed: tuple[tuple[str, int], ...]) -> dict[str, tuple[metadata.EntryPoint, ...]]:
    """The entry points in directories of packages; reading them all takes 15 ms."""
    found: dict[str, dict[tuple[str, str], metadata.EntryPoint]] = {}
    for point in metadata.entry_points(group=GROUP):
        found.setdefault(point.name, {}).setdefault((distribution_of(point)[0], point.value), point)
    return {name: tuple(points.values()) for name, points in sorted(found.items())}


def _installed() -> tuple[tuple[str, int], ...]:
    """The directories that packages are imported from, with the time at which one was last added or removed."""
    return tuple((place, _changed(place)) for place in map(os.path.abspath, sys.path))


def _changed(place: str) -> int:
    try:
        return os.stat(place).st_mtime_ns
    except OSError:
        return 0


def distribution_of(point: metadata.EntryPoint) -> tuple[str, str]:
    """Name and version of the distribution that an entry point comes from; empty if it has none."""
    return _name_and_version(point.dist) if point.dist else ("", "")


@functools.lru_cache(maxsize=64)
def _name_and_version(distribution: metadata.Distribution) -> tuple[str, str]:
    """Reading them parses all the metadata of a distribution."""
    return distribution.name, distribution.version


def installed_name(name: str, known: Iterable[str]) -> str:
    """The installed plugin's name that is meant: hyphens stand for underscores, and capitals for small letters.

    ``flash-attn`` and ``Flash_Attn`` are ``flash_attn``; a name that no plugin has is returned as it is.
    """
    names = list(known)
    if name in names:
        return name
    plain = _plain(name)
    return next((each for each in names if _plain(each) == plain), name)


def _plain(name: str) -> str:
    return name.replace("-", "_").lower()


def name_of(cls: type[Plugin], known: Mapping[str, list[metadata.EntryPoint]]) -> str:
    """The installed name of a plugin's class, or ``module:Class`` where it is not installed."""
    value = f"{cls.__module__}:{cls.__qualname__}"
    for name, points in known.items():
        if any(point.value == value for point in points):
            return name
    return value


def load_class(name: str, known: Mapping[str, list[metadata.EntryPoint]], where: str = "") -> type[Plugin]:
    """Import one plugin's class, by its installed name or as ``package.module:Class``.

    Raises:
        ConfigError: if there is none, two distributions claim the name, or the import fails.
    """
    where = where or f"plugin {name}"
    points = known.get(name, [])
    if len(points) > 1:
        names = " and ".join(sorted(distribution_of(point)[0] or "?" for point in points))
        fix = f"uninstall one, or name the class: -p {points[0].value}"
        raise ConfigError(Problem(f"two distributions claim the plugin name {name!r}: {names}", where, fix))
    value = points[0].value if points else name
    if not re.fullmatch(r"[\w.]+:[\w.]+", value):
        fix = nearest(name, known) or _described_by(name, known) or "`sftkit plugins` lists what is installed"
        raise ConfigError(Problem(f"no plugin is named {name!r}", where, fix))
    module, _, attribute = value.partition(":")
    try:
        cls: Any = import_user_module(module)
        for part in attribute.split("."):
            cls = getattr(cls, part)
    except (Exception, SystemExit) as error:  # whatever an import raises, only this plugin is broken
        fix = f"fix, uninstall or deselect the plugin: `import {module}` raises {type(error).__name__}"
        what = f"plugin {name!r} is broken: {type(error).__name__}: {error}"
        raise ConfigError(Problem(" ".join(what.split()), where, fix)) from error
    if not (isinstance(cls, type) and issubclass(cls, Plugin)):
        raise ConfigError(Problem(f"{value} is not a subclass of sftkit.Plugin", where, "derive it from sftkit.Plugin"))
    return cls


def _described_by(word: str, known: Mapping[str, list[metadata.EntryPoint]]) -> str:
    """The installed plugins whose summary has a word that is no plugin's name, as the fix of an error; "" if none."""
    found = []
    for name in known:
        try:
            summary = (load_class(name, known).__doc__ or "").strip().partition("\n")[0]
        except ConfigError:  # a broken plugin is reported when it is selected
            continue
        if re.search(rf"\b{re.escape(word)}\b", summary, re.IGNORECASE):
            found.append(name)
    if len(found) > 1:
        return f"the plugins {', '.join(found)} have to do with it; `sftkit plugins NAME` describes one"
    return f"did you mean {found[0]!r}?" if found else ""


def plugin_advice(key: str) -> str:
    """Which installed plugins a misplaced key belongs to, as the fix of an error; "" if there are none.

    A key may be a field of TrainingArguments, or of TRL's, that a plugin replaces, or an option of a plugin.
    """
    known, options = discover(), []
    for name in known:
        try:
            cls = load_class(name, known)
        except ConfigError:  # a broken plugin is reported when it is selected
            continue
        if key in cls.replaces:
            option = cls.replaces[key]
            return f"select plugin {name}" + (f" and set its option {option}" if option else "")
        if key in option_names(cls):
            options.append(name)
    if options:
        places = " or ".join(f"plugins.{name}.{key}" for name in options)
        return f"it is an option of plugin {' and of plugin '.join(options)}: set {places}"
    return ""


def check_class(cls: type[Plugin], name: str) -> list[Problem]:
    """Problems of a plugin's class: another version of the API, missing packages, no GPU, no frozen dataclass."""
    where = f"plugin {name}"
    if problem := api_problem(cls.api, where):
        return [problem]
    problems = [p for item in cls.requires if (p := requirement_problem(item, where))]
    if cls.needs_gpu and not has_gpu():
        problems.append(Problem("needs a GPU, and none is visible here", where, f"run on a GPU, or without {name}"))
    params: Any = getattr(cls, "__dataclass_params__", None)
    if "__dataclass_fields__" not in vars(cls) or not params.frozen:
        fix = "decorate the class with @dataclass(frozen=True, kw_only=True)"
        problems.append(Problem(f"{cls.__name__} is not a frozen dataclass", where, fix))
    return problems
