"""Which plugins a run has: as chosen on the command line, in YAML or in Python, with the defaults."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import pluggy

from sftkit import DISTRIBUTION
from sftkit.answers import set_aside
from sftkit.config.assignments import parse_assignment, split_options
from sftkit.config.source import ConfigSource, Key, Place
from sftkit.errors import ConfigError, Problem, nearest
from sftkit.plugin.base import Plugin
from sftkit.plugin.calls import hook_names, is_slot, make_manager
from sftkit.plugin.paths import is_option, locate, misplaced
from sftkit.plugin.registry import check_class, discover, distribution_of, installed_name, load_class, name_of
from sftkit.plugin.selected import DEFAULTS, PluginSet, Selected, fields_of


@dataclasses.dataclass(frozen=True)
class Choice:
    """One plugin as asked for on the command line, in YAML or in Python.

    Attributes:
        name: its installed name, or ``package.module:Class``.
        options: its options.
        dropped: whether it is to be left out.
        where: the place of the choice.
        instance: the plugin itself, where it was passed as an object.
        key: its name as it was written in YAML, under which the places of its options are known.
    """

    name: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dropped: bool = False
    where: str = ""
    instance: Plugin | None = None
    key: str = ""
    folders: Mapping[str, Path] = dataclasses.field(default_factory=dict)  # of the files, by option


def parse_choice(text: str, known: Iterable[str], where: str = "") -> Choice:
    """Read ``name``, ``no:name``, ``name:opt=value,opt2=value`` or ``package.module:Class[:opt=value]``.

    Raises:
        ConfigError: if it is none of these.
    """
    name, colon, rest = text.partition(":")
    if name == "no" and rest:
        return Choice(installed_name(rest, known), dropped=True, where=where)
    piece, more_colon, more = rest.partition(":")
    if piece.isidentifier() and name not in known:
        name, colon, rest = f"{name}:{piece}", more_colon, more
    name = installed_name(name, known)
    options = {}
    if colon:
        where_option = f"{where}, plugin {name}" if where else f"plugin {name}"
        options = dict(parse_assignment(part, where_option) for part in split_options(rest))
    return Choice(name, options, where=where)


def choices_from(source: ConfigSource) -> list[Choice]:
    """The choices in a configuration's ``plugins``: a mapping of name to options (false drops), or a list as for -p.

    Raises:
        ConfigError: if it is neither.
    """
    raw = source.values.get("plugins") or {}
    known = discover()
    if isinstance(raw, Mapping):
        return [_choice_from_item(str(name), value, source, known) for name, value in raw.items()]
    if not isinstance(raw, list):
        fix = "write a mapping, as in `plugins: {packing: {}}`, or a list of names"
        raise ConfigError(Problem("must be a mapping or a list", source.where(("plugins",)), fix))
    choices = []
    for index, item in enumerate(raw):
        key = ("plugins", str(index))
        where = source.where(key) if key in source.places else ""
        if isinstance(item, Plugin):
            choices.append(Choice(name_of(type(item), known), instance=item, where=where))
        elif isinstance(item, str):
            choice, place = parse_choice(item, known, where), source.place(key)
            choices.append(dataclasses.replace(choice, folders=_folders(choice.options, place)))
        elif isinstance(item, Mapping) and len(item) == 1:
            name, value = next(iter(item.items()))
            choices.append(dataclasses.replace(_choice_from_item(str(name), value, source, known), where=where))
        else:
            fix = "give a name, `name:option=value`, a mapping of one name to its options, or a Plugin object"
            raise ConfigError(Problem(f"{item!r} is not a plugin", where, fix))
    return choices


def _choice_from_item(key: str, value: Any, source: ConfigSource, known: Iterable[str]) -> Choice:
    where = source.where(("plugins", key))
    name = installed_name(key.removeprefix("no:"), known)
    if key.startswith("no:") or value is False:
        return Choice(name, dropped=True, where=where, key=key)
    if value is None or value is True:
        return Choice(name, where=where, key=key)
    if not isinstance(value, Mapping):
        raise ConfigError(Problem("options must be a mapping", where, f"write `{key}: {{option: value}}`"))
    options = {str(option): given for option, given in value.items()}
    folders: dict[str, Path] = {}
    for option in options:
        folders |= _folders([option], source.place(("plugins", key, option)))
    return Choice(name, options, where=where, key=key, folders=folders)


def _folders(options: Iterable[str], place: Place | None) -> dict[str, Path]:
    return {} if place is None or place.folder is None else dict.fromkeys(options, place.folder)


def _chosen_twice(choices: Iterable[Choice], places: Mapping[Key, Place]) -> Iterator[Problem]:
    """A Problem for each plugin that one file names in two spellings, as for a key that is set twice."""
    seen: dict[tuple[str, str, bool], Choice] = {}
    for choice in choices:
        if place := places.get(("plugins", choice.key)):
            same = (choice.name, place.text.rpartition(":")[0], choice.key.startswith("no:"))
            first = seen.setdefault(same, choice)
            if first.key != choice.key:  # an override on the command line may have the same one
                known = places["plugins", first.key].text
                yield Problem(
                    f"plugin {choice.name} is set twice, first in {known} as {first.key}", choice.where, "remove one"
                )


def select(choices: Iterable[Choice], source: ConfigSource | None = None) -> tuple[PluginSet | None, list[Problem]]:
    """Import, build and check the chosen plugins and the defaults.

    Returns:
        The plugin set (None where there are problems), and every problem found.
    """
    known, choices, source = discover(), list(choices), source or ConfigSource()
    merged, problems = _merge(choices, known)
    problems += _chosen_twice(choices, source.places)
    selected: list[Selected] = []
    for choice in merged:
        item, wrong = _build(choice, known, source)
        problems += wrong
        if item:
            selected.append(item)
    replaced = _conflicting_defaults(selected, {choice.name for choice in choices})
    selected = [item for item in selected if item.name not in replaced]
    problems += _check_conflicts(selected, {choice.name for choice in merged} - replaced)
    manager, wrong = make_manager([(item.name, item.plugin) for item in selected])
    problems += wrong + _check_slots(manager, {choice.name for choice in merged if _is_default(choice)})
    return (None if problems else PluginSet(tuple(selected), manager)), problems


def _merge(choices: Iterable[Choice], known: Mapping[str, Any]) -> tuple[list[Choice], list[Problem]]:
    """One choice per name, in the order of first naming: later options override, ``no:`` drops; defaults come last."""
    merged: dict[str, Choice] = {}
    dropped: set[str] = set()
    problems = []
    for choice in choices:
        if choice.dropped:
            if choice.name not in merged and choice.name not in known:
                fix = nearest(choice.name, [*merged, *known]) or "drop only what is selected"
                problems.append(Problem(f"no:{choice.name}: there is no plugin {choice.name}", choice.where, fix))
            merged.pop(choice.name, None)
            dropped.add(choice.name)
        elif choice.name in merged and choice.instance is None and merged[choice.name].instance is None:
            earlier = merged[choice.name]
            kept = {option: folder for option, folder in earlier.folders.items() if option not in choice.options}
            options, folders = {**earlier.options, **choice.options}, {**kept, **choice.folders}
            merged[choice.name] = dataclasses.replace(choice, options=options, folders=folders)
        else:
            merged[choice.name] = choice
            dropped.discard(choice.name)
    for name, default in DEFAULTS.items():  # last even if they were named, so that any other plugin overrides them
        if name in merged or name not in dropped:
            choice = merged.get(name, Choice(name, default))
            if _is_default(choice):
                merged.pop(name, None)
            merged[name] = choice
    return list(merged.values()), problems


def _is_default(choice: Choice) -> bool:
    """Whether a choice is one of the defaults, which it is not if it lacks an option of that default."""
    return choice.name in DEFAULTS and DEFAULTS[choice.name].items() <= choice.options.items()


def _build(
    choice: Choice, known: Mapping[str, list[metadata.EntryPoint]], source: ConfigSource
) -> tuple[Selected | None, list[Problem]]:
    points = known.get(choice.name, [])
    try:
        cls = type(choice.instance) if choice.instance is not None else load_class(choice.name, known, choice.where)
        problems = check_class(cls, choice.name)
        options, misplaced = _located(choice, cls, source)
        problems += misplaced
        # Building the instance again validates options that a plain dataclass decorator did not check.
        plugin = cls(**(options if choice.instance is None else fields_of(choice.instance)))
    except ConfigError as error:
        return None, [_placed(problem, choice, source) for problem in error.problems]
    if problems:
        return None, problems
    distribution, version = distribution_of(points[0]) if points else ("", "")
    if distribution != DISTRIBUTION:
        set_aside()
    return Selected(choice.name, plugin, distribution, version), []


def _located(choice: Choice, cls: type[Plugin], source: ConfigSource) -> tuple[dict[str, Any], list[Problem]]:
    """The options that are set, with paths from the working directory, and paths that are wrong.

    Null stands for the default, unless it is a value of the option.
    """
    options, problems = {}, []
    fields = getattr(cls, "__pydantic_fields__", {})
    for name, value in choice.options.items():
        if value is None and name in fields and not _takes_null(fields[name].annotation):
            continue
        options[name] = value
        if name not in cls.paths or (folder := choice.folders.get(name)) is None:
            continue
        located = []
        for path in value if isinstance(value, list) else [value]:
            found, better = locate(path, folder, is_option) if isinstance(path, str) else (path, "")
            located.append(found)
            if better:
                problem = misplaced(path, folder, better, "")
                problems.append(_placed(dataclasses.replace(problem, key=(name,)), choice, source))
        options[name] = located if isinstance(value, list) else located[0]
    return options, problems


def _takes_null(annotation: Any) -> bool:
    return annotation is Any or type(None) in (annotation, *get_args(annotation))


def _placed(problem: Problem, choice: Choice, source: ConfigSource) -> Problem:
    """The problem with the plugin named as the user named it, and the file and line of the option."""
    if not problem.key:
        return problem
    key = ("plugins", choice.key or choice.name, *problem.key)
    named = f"plugin {choice.name}, option {'.'.join(problem.key)}"
    if key[:3] in source.places and problem.key[0] in choice.folders:  # else it was overridden
        where = source.where(key)
    else:
        where = f"{choice.where}, {named}" if choice.where and "plugins." not in choice.where else named
    return dataclasses.replace(problem, where=where)


def _conflicting_defaults(selected: list[Selected], named: set[str]) -> set[str]:
    """The defaults that nobody named, and with which a selected plugin cannot be used."""
    return {name for item in selected for name in item.plugin.conflicts if name in DEFAULTS and name not in named}


def _check_conflicts(selected: list[Selected], names: set[str]) -> list[Problem]:
    return [
        Problem(f"plugins {item.name} and {other} cannot be used together", f"plugin {item.name}", f"drop {other}")
        for item in selected
        for other in item.plugin.conflicts
        if other in names
    ]


def _check_slots(manager: pluggy.PluginManager, defaults: set[str]) -> list[Problem]:
    problems = []
    for name in filter(is_slot, hook_names()):
        owners = [
            impl.plugin_name
            for impl in reversed(getattr(manager.hook, name).get_hookimpls())
            if not (impl.wrapper or impl.hookwrapper) and impl.plugin_name not in defaults
        ]
        if len(owners) > 1:
            what = f"plugins {' and '.join(owners)} both fill the slot {name}"
            problems.append(Problem(what, "plugins", f"keep one of {', '.join(owners)}"))
    return problems


def plugin_from(text: str) -> Plugin:
    """The plugin that a text for ``--plugin`` names, with its options; it need not work on this machine.

    Args:
        text: ``name``, ``name:option=value`` or ``package.module:Class[:option=value]``.

    Raises:
        ConfigError: if there is no such plugin, it cannot be imported, or its options are wrong.
    """
    known = discover()
    choice = parse_choice(text, known)
    if choice.dropped:
        raise ConfigError(Problem(f"{text!r} names no plugin", "the plugin", "give a name, without no:"))
    try:
        return load_class(choice.name, known)(**choice.options)
    except ConfigError as error:
        raise ConfigError(_placed(problem, choice, ConfigSource()) for problem in error.problems) from None
