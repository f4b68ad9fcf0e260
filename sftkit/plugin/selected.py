"""The plugins of a run, and their hooks."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterable
from typing import Any

import pluggy

from sftkit.errors import ConfigError, Problem
from sftkit.plugin.base import Plugin

#: Selected unless dropped with ``no:NAME``; any other plugin on their slots overrides them.
DEFAULTS = ("hf", "formats", "pad", "metrics", "checks")


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

        Raises:
            ConfigError: if two of them set one key.
        """
        merged = dict(config.model.options)
        owner = dict.fromkeys(merged, "model.options")
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


def fields_of(plugin: Plugin) -> dict[str, Any]:
    """A plugin's options by name."""
    return {field.name: getattr(plugin, field.name) for field in dataclasses.fields(plugin)}
