"""Plugins: found without importing them, selected, checked, and gathered into one pluggy manager a run."""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from typing import Any

import pluggy

from sftkit.config.source import ConfigSource, parse_assignment, split_options
from sftkit.errors import ConfigError, Problem, nearest
from sftkit.plugin.base import Plugin
from sftkit.plugin.hookspecs import Hooks
from sftkit.plugin.requirements import has_gpu, requirement_problem

GROUP = "sftkit"
#: Selected unless dropped with ``no:NAME``; any other plugin on their slots goes before them.
DEFAULTS = ("hf", "formats", "pad")


@dataclasses.dataclass(frozen=True)
class Choice:
    """One plugin as asked for on the command line, in YAML or in Python."""

    name: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    dropped: bool = False
    where: str = ""
    instance: Plugin | None = None


@dataclasses.dataclass(frozen=True)
class Selected:
    """A plugin of a run, with the distribution it comes from."""

    name: str
    plugin: Plugin
    distribution: str = ""
    version: str = ""


@dataclasses.dataclass(frozen=True)
class PluginSet:
    """The plugins of a run and the manager that calls them."""

    selected: tuple[Selected, ...]
    manager: pluggy.PluginManager

    @property
    def hook(self) -> Any:
        """The hooks, as ``plugins.hook.load_model(config=..., options=...)``."""
        return self.manager.hook

    def options(self) -> dict[str, dict[str, Any]]:
        """Every plugin's name and its options, for ``RunConfig.plugins``."""
        return {item.name: _fields(item.plugin) for item in self.selected}

    def unfilled(self, slots: Iterable[str]) -> list[Problem]:
        """A Problem for each of the slots that no selected plugin fills."""
        fix = f"select a plugin that fills it, or keep the defaults ({', '.join(DEFAULTS)})"
        return [
            Problem(f"no selected plugin fills the slot {slot}", "plugins", fix)
            for slot in slots
            if not self.fillers(slot)
        ]

    def fillers(self, slot: str) -> set[str]:
        """The names of the plugins that fill a slot, those that only wrap it left out."""
        implementations = getattr(self.hook, slot).get_hookimpls()
        return {impl.plugin_name for impl in implementations if not (impl.wrapper or impl.hookwrapper)}

    def import_first(self) -> None:
        """Import what the selected plugins want imported before transformers.

        Raises:
            ConfigError: if that fails.
        """
        for item in self.selected:
            for name in item.plugin.import_first:
                try:
                    importlib.import_module(name)
                except Exception as error:  # whatever the package raises, it cannot be used here
                    what = f"`import {name}` fails: {' '.join(str(error).split())}"
                    raise ConfigError(Problem(what, f"plugin {item.name}", f"mend it, or drop {item.name}")) from error

    def model_options(self, config: Any) -> dict[str, Any]:
        """``config.model.options`` and every plugin's ``model_options``, merged.

        Raises:
            ConfigError: if two of them set one key.
        """
        merged = dict(config.model.options)
        owner = dict.fromkeys(merged, "model.options")
        problems = []
        for impl in reversed(self.hook.model_options.get_hookimpls()):
            arguments = {"config": config} if "config" in impl.argnames else {}
            for key, value in impl.function(**arguments).items():
                if key in owner:
                    fix = f"keep it in one of them, or drop plugin {impl.plugin_name}"
                    problems.append(
                        Problem(f"both {owner[key]} and plugin {impl.plugin_name} set {key!r}", "model options", fix)
                    )
                merged[key], owner[key] = value, f"plugin {impl.plugin_name}"
        if problems:
            raise ConfigError(problems)
        return merged


def discover() -> dict[str, list[metadata.EntryPoint]]:
    """The installed plugins' entry points by name; nothing is imported."""
    found: dict[str, dict[tuple[str, str], metadata.EntryPoint]] = {}
    for point in metadata.entry_points(group=GROUP):
        distribution = point.dist.name if point.dist else ""
        found.setdefault(point.name, {}).setdefault((distribution, point.value), point)
    return {name: list(points.values()) for name, points in sorted(found.items())}


def parse_choice(text: str, known: Iterable[str], where: str = "") -> Choice:
    """Read ``name``, ``no:name``, ``name:opt=value,opt2=value`` or ``package.module:Class[:opt=value]``.

    Raises:
        ConfigError: if it is none of these.
    """
    name, colon, rest = text.partition(":")
    if name == "no" and rest:
        return Choice(rest, dropped=True, where=where)
    piece, more_colon, more = rest.partition(":")
    if piece.isidentifier() and name not in known:
        name, colon, rest = f"{name}:{piece}", more_colon, more
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
        return [_choice_from_item(str(name), value, source) for name, value in raw.items()]
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
            choices.append(parse_choice(item, known, where))
        elif isinstance(item, Mapping) and len(item) == 1:
            name, value = next(iter(item.items()))
            choices.append(dataclasses.replace(_choice_from_item(str(name), value, source), where=where))
        else:
            fix = "give a name, `name:option=value`, a mapping of one name to its options, or a Plugin object"
            raise ConfigError(Problem(f"{item!r} is no plugin", where, fix))
    return choices


def _choice_from_item(name: str, value: Any, source: ConfigSource) -> Choice:
    where = source.where(("plugins", name))
    if name.startswith("no:") or value is False:
        return Choice(name.removeprefix("no:"), dropped=True, where=where)
    if value is None or value is True:
        return Choice(name, where=where)
    if not isinstance(value, Mapping):
        raise ConfigError(Problem("options must be a mapping", where, f"write `{name}: {{option: value}}`"))
    return Choice(name, dict(value), where=where)


def name_of(cls: type[Plugin], known: Mapping[str, list[metadata.EntryPoint]]) -> str:
    """The installed name of a plugin's class, or ``module:Class`` where it is not installed."""
    value = f"{cls.__module__}:{cls.__qualname__}"
    for name, points in known.items():
        if any(point.value == value for point in points):
            return name
    return value


def select(choices: Iterable[Choice], source: ConfigSource | None = None) -> tuple[PluginSet | None, list[Problem]]:
    """Import, build and check the chosen plugins and the defaults.

    Returns:
        The plugin set (None where there are problems), and every problem found.
    """
    known = discover()
    merged, problems = _merge(choices, known)
    selected: list[Selected] = []
    for choice in merged:
        item, wrong = _build(choice, known, source or ConfigSource())
        problems += wrong
        if item:
            selected.append(item)
    problems += _check_conflicts(selected, merged)
    manager, wrong = _make_manager(selected)
    problems += wrong + _check_slots(manager)
    return (None if problems else PluginSet(tuple(selected), manager)), problems


def _merge(choices: Iterable[Choice], known: Mapping[str, Any]) -> tuple[list[Choice], list[Problem]]:
    """One choice a name, in the order of first naming: later options override, ``no:`` drops; defaults go last."""
    merged: dict[str, Choice] = {}
    dropped: set[str] = set()
    problems = []
    for choice in choices:
        if choice.dropped:
            if choice.name not in merged and choice.name not in DEFAULTS:
                fix = nearest(choice.name, [*merged, *DEFAULTS]) or "drop only what is selected"
                problems.append(Problem(f"no:{choice.name}: plugin {choice.name} is not selected", choice.where, fix))
            merged.pop(choice.name, None)
            dropped.add(choice.name)
        elif choice.name in merged and choice.instance is None and merged[choice.name].instance is None:
            options = {**merged[choice.name].options, **choice.options}
            merged[choice.name] = dataclasses.replace(choice, options=options)
        else:
            merged[choice.name] = choice
            dropped.discard(choice.name)
    for name in DEFAULTS:
        if name not in merged and name not in dropped:
            merged[name] = Choice(name)
    return list(merged.values()), problems


def _build(
    choice: Choice, known: Mapping[str, list[metadata.EntryPoint]], source: ConfigSource
) -> tuple[Selected | None, list[Problem]]:
    points = known.get(choice.name, [])
    dist = points[0].dist if points else None
    try:
        cls = type(choice.instance) if choice.instance is not None else load_class(choice.name, known, choice.where)
        problems = check_class(cls, choice.name, dist)
        # an instance is built anew: that validates what a plain dataclass decorator did not
        plugin = cls(**(choice.options if choice.instance is None else _fields(choice.instance)))
    except ConfigError as error:
        return None, [_placed(problem, choice, source) for problem in error.problems]
    if problems:
        return None, problems
    return Selected(choice.name, plugin, dist.name if dist else "", dist.version if dist else ""), []


def _fields(plugin: Plugin) -> dict[str, Any]:
    return {field.name: getattr(plugin, field.name) for field in dataclasses.fields(plugin)}


def _placed(problem: Problem, choice: Choice, source: ConfigSource) -> Problem:
    """Names the plugin as the user did, and the file and line where the option stands."""
    if not problem.key:
        return problem
    key = ("plugins", choice.name, *problem.key)
    named = f"plugin {choice.name}, option {'.'.join(problem.key)}"
    if key[:3] in source.places:
        where = source.where(key)
    else:
        where = f"{choice.where}, {named}" if choice.where and "plugins." not in choice.where else named
    return dataclasses.replace(problem, where=where)


def load_class(name: str, known: Mapping[str, list[metadata.EntryPoint]], where: str = "") -> type[Plugin]:
    """Import one plugin's class, by its installed name or as ``package.module:Class``.

    Raises:
        ConfigError: if there is none, two distributions claim the name, or the import fails.
    """
    where = where or f"plugin {name}"
    points = known.get(name, [])
    if len(points) > 1:
        names = " and ".join(sorted(point.dist.name if point.dist else "?" for point in points))
        fix = f"uninstall one, or name the class: -p {points[0].value}"
        raise ConfigError(Problem(f"two distributions claim the plugin name {name!r}: {names}", where, fix))
    value = points[0].value if points else name
    if not re.fullmatch(r"[\w.]+:[\w.]+", value):
        fix = nearest(name, known) or "`sftkit plugins` lists what is installed"
        raise ConfigError(Problem(f"no plugin is named {name!r}", where, fix))
    module, _, attribute = value.partition(":")
    try:
        cls: Any = importlib.import_module(module)
        for part in attribute.split("."):
            cls = getattr(cls, part)
    except Exception as error:  # a plugin's import may raise anything, and only that plugin is to blame
        fix = f"mend or uninstall it, or run without: {type(error).__name__} is raised by `import {module}`"
        what = f"plugin {name!r} is broken: {type(error).__name__}: {error}"
        raise ConfigError(Problem(" ".join(what.split()), where, fix)) from error
    if not (isinstance(cls, type) and issubclass(cls, Plugin)):
        raise ConfigError(Problem(f"{value} is no sftkit.Plugin", where, "derive the class from sftkit.Plugin"))
    return cls


def check_class(cls: type[Plugin], name: str, dist: metadata.Distribution | None) -> list[Problem]:
    """What a plugin's class declares and this machine lacks: packages, their versions, a GPU."""
    where = f"plugin {name}"
    problems = [p for item in cls.requires if (p := requirement_problem(item, dist, where))]
    if cls.needs_gpu and not has_gpu():
        problems.append(Problem("it needs a GPU, and none is visible here", where, f"run on a GPU, or without {name}"))
    params: Any = getattr(cls, "__dataclass_params__", None)
    if "__dataclass_fields__" not in vars(cls) or not params.frozen:
        fix = "decorate the class with @dataclass(frozen=True, kw_only=True)"
        problems.append(Problem(f"{cls.__name__} is not a frozen dataclass", where, fix))
    return problems


def _check_conflicts(selected: list[Selected], chosen: list[Choice]) -> list[Problem]:
    names = {choice.name for choice in chosen}
    return [
        Problem(f"plugins {item.name} and {other} exclude each other", f"plugin {item.name}", f"drop {other}")
        for item in selected
        for other in item.plugin.conflicts
        if other in names
    ]


def _make_manager(selected: list[Selected]) -> tuple[pluggy.PluginManager, list[Problem]]:
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(Hooks)
    problems = []
    for item in reversed(selected):  # pluggy calls the last registered first
        wrong = list(_hook_problems(item, manager))
        problems += wrong
        if not wrong:
            manager.register(item.plugin, name=item.name)
    manager.check_pending()
    return manager, problems


def _hook_problems(item: Selected, manager: pluggy.PluginManager) -> Iterator[Problem]:
    """Misspelt hooks and arguments, and hooks that lack the ``@hookimpl`` mark."""
    specs = {name for name in vars(Hooks) if not name.startswith("_")}
    where = f"plugin {item.name}"
    for name in dir(type(item.plugin)):
        if name.startswith("__"):
            continue
        marked = manager.parse_hookimpl_opts(item.plugin, name) is not None
        if name in specs and not marked:
            yield Problem(f"{name} is a hook but not marked", where, "put @hookimpl above it")
        elif marked and name not in specs:
            yield Problem(f"there is no hook {name!r}", where, nearest(name, specs) or "see docs/hooks.md")
        elif marked:
            allowed = manager.hook.__dict__[name].spec.argnames
            given, _ = pluggy._hooks.varnames(getattr(item.plugin, name))
            for argument in given:
                if argument not in allowed:
                    fix = nearest(argument, allowed) or f"its arguments are: {', '.join(allowed)}"
                    yield Problem(f"hook {name} has no argument {argument!r}", where, fix)


def hooks_filled(cls: type[Plugin]) -> list[str]:
    """The hooks that a plugin's class implements, in the order of a run."""
    return [name for name in vars(Hooks) if hasattr(getattr(cls, name, None), "sftkit_impl")]


def _check_slots(manager: pluggy.PluginManager) -> list[Problem]:
    problems = []
    for name, caller in manager.hook.__dict__.items():
        if name.startswith("_") or not caller.spec or not caller.spec.opts.get("firstresult"):
            continue
        owners = [
            impl.plugin_name
            for impl in reversed(caller.get_hookimpls())
            if not (impl.wrapper or impl.hookwrapper) and impl.plugin_name not in DEFAULTS
        ]
        if len(owners) > 1:
            what = f"plugins {' and '.join(owners)} both fill the slot {name}"
            problems.append(Problem(what, "plugins", f"keep one of {', '.join(owners)}"))
    return problems
