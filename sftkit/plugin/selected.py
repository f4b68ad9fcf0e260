"""The plugins of a run, and their hooks."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

import pluggy

from sftkit.errors import ConfigError, Problem
from sftkit.models.adapters import base_options
from sftkit.plugin.base import Plugin

#: Selected with these options unless they are named, or dropped with ``no:NAME``; any other plugin on their slots
#: overrides them, and one that conflicts with them takes their place.
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "hf": {},
    "formats": {},
    "fast_tokens": {},
    "pad": {},
    "flash_attn": {"fallback": True},
    "metrics": {},
    "checks": {},
}


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
        """The hooks, as ``plugins.hook.load_model(config=..., options=...)``.

        A slot returns the first plugin's result, a broadcast a list of ``(plugin name, result)``.
        """
        return self.manager.hook

    def options(self) -> dict[str, dict[str, Any]]:
        """Every plugin's name and its options, for ``RunConfig.plugins``."""
        return {item.name: fields_of(item.plugin) for item in self.selected}

    def find(self, cls: type[Plugin]) -> Plugin | None:
        """The selected plugin of a class, if there is one."""
        return next((item.plugin for item in self.selected if isinstance(item.plugin, cls)), None)

    def unfilled(self, slots: Iterable[str]) -> list[Problem]:
        """A Problem for each of the slots that no selected plugin fills."""
        fix = f"select a plugin that fills it, or keep the defaults ({', '.join(DEFAULTS)})"
        return [
            Problem(f"no selected plugin fills the slot {slot}", "plugins", fix)
            for slot in slots
            if not self.fillers(slot)
        ]

    def fillers(self, slot: str) -> set[str]:
        """The names of the plugins that fill a slot; plugins that only wrap it do not count."""
        implementations = getattr(self.hook, slot).get_hookimpls()
        return {impl.plugin_name for impl in implementations if not (impl.wrapper or impl.hookwrapper)}

    def first_filler(self, slot: str) -> str:
        """The name of the plugin that is asked first to fill a slot; empty if none does."""
        names = self.fillers(slot)
        return next((item.name for item in self.selected if item.name in names), "")

    def responsible(self, hook: str) -> str:
        """Who made the result of a slot, as the place of a problem: ``plugin pad, hook make_collator``.

        The plugin that is asked first to fill it. Before it, those that wrap it are named, the outermost first.
        """
        implementations = reversed(getattr(self.hook, hook).get_hookimpls())
        wrapping = [impl.plugin_name for impl in implementations if impl.wrapper or impl.hookwrapper]
        names = [name for name in (*wrapping, self.first_filler(hook)) if name]
        return f"plugin {' around '.join(names)}, hook {hook}" if names else f"hook {hook}"

    def one_by_one(self, hook: str) -> list[tuple[str, Any]]:
        """The calls of a broadcast, one for each plugin, in their order: ``(plugin name, function)`` pairs.

        If a plugin wraps the hook, there is one call of all, with their names.
        """
        caller = getattr(self.hook, hook)
        implementations = caller.get_hookimpls()
        filling = [item.name for item in self.selected if item.name in self.fillers(hook)]
        if any(impl.wrapper or impl.hookwrapper for impl in implementations):
            return [(", ".join(filling), caller)]
        plugins = {impl.plugin_name: impl.plugin for impl in implementations}
        others = {name: [each for key, each in plugins.items() if key != name] for name in filling}
        return [(name, self.manager.subset_hook_caller(hook, others[name])) for name in filling]

    def import_first(self) -> None:
        """Import the modules that the selected plugins need imported before transformers.

        Raises:
            ConfigError: if an import fails.
        """
        for item in self.selected:
            for name in item.plugin.import_first:
                try:
                    importlib.import_module(name)
                except Exception as error:  # whatever the package raises, it cannot be used here
                    what = f"`import {name}` fails: {' '.join(str(error).split())}"
                    fix = f"fix the installation of {name}, or deselect plugin {item.name}"
                    raise ConfigError(Problem(what, f"plugin {item.name}", fix)) from error

    def model_options(self, config: Any) -> dict[str, Any]:
        """``config.model.options`` and every plugin's ``model_options``, merged.

        If the model is an adapter, they override those with which its base was loaded when it was trained.

        Raises:
            ConfigError: if two of them set one key.
        """
        merged = base_options(config.model.name) | config.model.options
        owner = dict.fromkeys(config.model.options, "model.options")
        problems = []
        for plugin, options in self.hook.model_options(config=config):
            for key, value in options.items():
                if key in owner:
                    fix = f"set it in one place only, or drop plugin {plugin}"
                    problems.append(Problem(f"both {owner[key]} and plugin {plugin} set {key!r}", "model options", fix))
                merged[key], owner[key] = value, f"plugin {plugin}"
        if problems:
            raise ConfigError(problems)
        return merged

    def metrics(self, config: Any) -> dict[str, Any]:
        """The functions of every plugin's ``metrics``, by name.

        Raises:
            ConfigError: if two plugins offer one name.
        """
        merged: dict[str, Any] = {}
        owner: dict[str, str] = {}
        problems = []
        for plugin, functions in self.hook.metrics(config=config):
            if wrong := _no_functions(functions):
                fix = "return a mapping of names to functions"
                problems.append(Problem(wrong, f"plugin {plugin}, hook metrics", fix))
                continue
            for name in (functions or {}).keys() & merged.keys():
                fix = f"drop plugin {plugin} or {owner[name]}"
                problems.append(
                    Problem(f"plugins {owner[name]} and {plugin} both have a metric {name}", "plugins", fix)
                )
            merged |= functions or {}
            owner |= dict.fromkeys(functions or {}, plugin)
        if problems:
            raise ConfigError(problems)
        return merged


def _no_functions(found: Any) -> str:
    """What is wrong with what a hook ``metrics`` returned; empty if nothing is."""
    if found is None or isinstance(found, Mapping):
        wrong = [f"{name}: {value!r}" for name, value in (found or {}).items() if not callable(value)]
        return f"the metrics are no functions: {', '.join(wrong)}" if wrong else ""
    return f"it returns {found!r}"


def fields_of(plugin: Plugin) -> dict[str, Any]:
    """A plugin's options by name."""
    return {field.name: getattr(plugin, field.name) for field in dataclasses.fields(plugin)}
