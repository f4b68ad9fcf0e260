"""Commands of installed distributions: found by their entry points, and imported when they are called."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib import metadata
from typing import Any

import typer
from typer.core import TyperGroup

from sftkit.cli.common import add_common_options
from sftkit.cli.help import add_help
from sftkit.errors import ConfigError, Interrupted, Problem

GROUP = "sftkit.commands"
#: What Typer raises for arguments that it cannot read.
_UsageError: Any = typer.BadParameter.__base__


class CommandGroup(TyperGroup):
    """The commands of the core, and those of the entry-point group `sftkit.commands`.

    A command of the core keeps its name, whoever else claims it. Every command has the common options, and its help as
    `sftkit.cli.help` shows it; arguments that cannot be read are a ConfigError.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        add_help(self)
        for command in self.commands.values():
            add_help(add_common_options(command))

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """The context of the command line; the group's own options are read."""
        with _usage_errors():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        """Read the arguments of the command, and call it.

        Raises:
            Interrupted: after Ctrl-C, of which Typer would say nothing.
        """
        try:
            with _usage_errors():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted("by Ctrl-C", 130) from None

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read ``--show-completion zsh`` with the shell as a value, which may be left out."""
        read: list[str] = []
        for arg in args:
            after = read[-1:] in (["--install-completion"], ["--show-completion"])
            read += ["--completion-shell", arg] if after and not arg.startswith("-") else [arg]
        return super().parse_args(ctx, read)

    @cached_property
    def _installed(self) -> dict[str, list[metadata.EntryPoint]]:
        """Those of the entry points, which are read once for all commands that a help page lists."""
        return discover_commands()

    def list_commands(self, ctx: Any) -> list[str]:
        """The core's commands as they were added, ``run`` before the installed ones."""
        first, *rest = self.commands
        return list(dict.fromkeys([first, *self._installed, *rest]))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """One command; only its own module is imported."""
        if (own := super().get_command(ctx, cmd_name)) is not None:
            return own
        points = self._installed.get(cmd_name)
        return None if points is None else _load(cmd_name, points)


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Raises:
    ConfigError: for arguments that cannot be read.
    """
    try:
        yield
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # which shows the help
            raise
        path = error.ctx.command_path if error.ctx else "sftkit"
        what = error.format_message().rstrip(".")
        raise ConfigError(Problem(what, path, f"`{path} --help` shows what it takes")) from None


def discover_commands() -> dict[str, list[metadata.EntryPoint]]:
    """The installed commands' entry points by name; nothing is imported."""
    found: dict[str, dict[str, metadata.EntryPoint]] = {}
    for point in metadata.entry_points(group=GROUP):
        found.setdefault(point.name, {}).setdefault(point.value, point)
    return {name: list(points.values()) for name, points in sorted(found.items())}


def _load(name: str, points: list[metadata.EntryPoint]) -> Any:
    point = points[0]
    owners = " and ".join(sorted(item.dist.name if item.dist else "an unknown distribution" for item in points))
    if len(points) > 1:
        return _broken(name, f"two distributions provide it: {owners}", "uninstall one of them")
    try:
        loaded: Any = importlib.import_module(point.module)
        for part in point.attr.split("."):
            loaded = getattr(loaded, part)
        return add_help(add_common_options(_as_command(name, loaded)))
    except (Exception, SystemExit) as error:  # whatever an import raises, only this command is broken
        reason = re.sub(r"\s+", " ", f"{type(error).__name__}: {error}")
        return _broken(name, reason, f"fix or uninstall {owners}")


def _as_command(name: str, loaded: Any) -> Any:
    if isinstance(loaded, typer.Typer):
        command: Any = typer.main.get_command(loaded)
    elif callable(loaded):
        app = typer.Typer(add_completion=False)
        app.command(name)(loaded)
        command = typer.main.get_command(app)
    else:
        raise TypeError(f"{loaded!r} is neither a function nor a typer.Typer")
    command.name = name
    return command


def _broken(name: str, reason: str, fix: str) -> Any:
    """A command that stands in for one that cannot be loaded; calling it is an error."""

    def fail() -> None:
        raise ConfigError(Problem(f"the command is broken: {reason}", f"sftkit {name}", fix))

    app = typer.Typer(add_completion=False)
    settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    app.command(name, help=f"Broken: {reason}", context_settings=settings)(fail)
    return typer.main.get_command(app)
