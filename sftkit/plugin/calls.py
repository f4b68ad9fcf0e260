"""How hooks are called: through pluggy, with the plugin's name beside each result and in each error."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import pluggy

from sftkit.errors import HookError, Problem, SftkitError, nearest
from sftkit.plugin.base import Plugin
from sftkit.plugin.hookspecs import Hooks
from sftkit.plugin.versions import warn_of_deprecated

PROJECT = "sftkit"


class NamedResult(NamedTuple):
    """What one plugin returned from a broadcast.

    Attributes:
        plugin: the plugin's name.
        value: what its hook returned; a generator's items as a list.
    """

    plugin: str
    value: Any


def hook_names() -> list[str]:
    """All hooks, in the order in which a run calls them."""
    return [name for name in vars(Hooks) if not name.startswith("_")]


def hooks_filled(cls: type[Plugin]) -> list[str]:
    """The hooks that a plugin's class implements, in the order of a run."""
    return [name for name in hook_names() if hasattr(getattr(cls, name, None), f"{PROJECT}_impl")]


def is_slot(name: str) -> bool:
    """Whether a hook is a slot, which one plugin fills, or else a broadcast."""
    return bool(_spec(name)["firstresult"])


def _spec(name: str) -> Any:
    """The options of a hook's specification."""
    return getattr(getattr(Hooks, name), f"{PROJECT}_spec")


class CallablePlugin:
    """A plugin as pluggy calls it.

    A broadcast's results become `NamedResult`, which is also what a wrapper of a broadcast receives. An exception that
    is not an `SftkitError` becomes a `HookError` with the names of plugin and hook, also where a context manager that
    the hook returned raises it when it is entered or, unless the body raised, left.
    """

    def __init__(self, name: str, plugin: Plugin) -> None:
        for hook in hooks_filled(type(plugin)):
            setattr(self, hook, _named_call(name, hook, getattr(plugin, hook)))


def _named_call(plugin: str, hook: str, method: Callable[..., Any]) -> Callable[..., Any]:
    options = getattr(method, f"{PROJECT}_impl")
    if options["wrapper"] or options["hookwrapper"]:

        @functools.wraps(method)
        def wrapped(*arguments: Any) -> Any:
            with _naming_errors(plugin, hook):
                return (yield from method(*arguments))

        return wrapped

    @functools.wraps(method)
    def called(*arguments: Any) -> Any:
        with _naming_errors(plugin, hook):
            value = method(*arguments)
            if isinstance(value, Iterator) and not isinstance(value, AbstractContextManager):
                value = list(value)
        if isinstance(value, AbstractContextManager):
            value = NamedContext(plugin, hook, value)
        return value if is_slot(hook) else NamedResult(plugin, value)

    return called


class _naming_errors(AbstractContextManager[None]):  # noqa: N801 (used as a function)
    def __init__(self, plugin: str, hook: str) -> None:
        self._plugin, self._hook = plugin, hook

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, SftkitError | HookError):
            raise HookError(self._plugin, self._hook, error) from error


class NamedContext(AbstractContextManager[Any]):
    """A plugin's context manager, whose own errors name the plugin.

    Attributes:
        plugin: the plugin's name.
    """

    def __init__(self, plugin: str, hook: str, context: AbstractContextManager[Any]) -> None:
        self.plugin, self._hook, self._context = plugin, hook, context

    def __enter__(self) -> Any:
        with _naming_errors(self.plugin, self._hook):
            return self._context.__enter__()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> Any:
        if error is not None:
            return self._context.__exit__(kind, error, trace)
        with _naming_errors(self.plugin, self._hook):
            return self._context.__exit__(None, None, None)


def make_manager(plugins: list[tuple[str, Plugin]]) -> tuple[pluggy.PluginManager, list[Problem]]:
    """A manager with these plugins, which calls them in this order, and the problems of their hooks."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    problems = []
    for name, plugin in reversed(plugins):  # pluggy calls the last registered first
        wrong = list(_hook_problems(name, plugin))
        problems += wrong
        if not wrong:
            _register(manager, name, plugin)
    manager.check_pending()
    return manager, problems


def _register(manager: pluggy.PluginManager, name: str, plugin: Plugin) -> None:
    """Register a plugin, with a warning for each deprecated hook or argument that it uses."""
    named = [warn_of_deprecated(name, hook, getattr(plugin, hook), _spec(hook)) for hook in hooks_filled(type(plugin))]
    if not any(named):
        manager.register(CallablePlugin(name, plugin), name=name)
        return
    with warnings.catch_warnings():  # pluggy's own, which name neither the plugin nor the hook
        warnings.simplefilter("ignore", FutureWarning)
        manager.register(CallablePlugin(name, plugin), name=name)


def _hook_problems(plugin_name: str, plugin: Plugin) -> Iterator[Problem]:
    """Misspelt hooks and arguments, and hooks that lack the ``@hookimpl`` mark."""
    known, where = hook_names(), f"plugin {plugin_name}"
    for name in dir(type(plugin)):
        if name.startswith("__"):
            continue
        marked = hasattr(getattr(type(plugin), name, None), f"{PROJECT}_impl")
        if name in known and not marked:
            yield Problem(f"{name} is a hook but not marked", where, "put @hookimpl above it")
        elif marked and name not in known:
            yield Problem(f"there is no hook {name!r}", where, nearest(name, known) or "`sftkit docs hooks` lists them")
        elif marked:
            allowed = list(inspect.signature(getattr(Hooks, name)).parameters)[1:]
            for argument in inspect.signature(getattr(plugin, name)).parameters:
                if argument not in allowed:
                    fix = nearest(argument, allowed) or f"its arguments are: {', '.join(allowed)}"
                    yield Problem(f"hook {name} has no argument {argument!r}", where, fix)
