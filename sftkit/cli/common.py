"""Options that every command has, whoever provides it: ``--quiet``, ``--verbose`` and ``--log-level``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum
from typing import Annotated, Any, Optional, TypeAlias

import typer

from sftkit.cli.process import log_levels
from sftkit.console.output import Output, showing

JsonOption: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
PANEL = "Output"
_CHOSEN = "sftkit.output."


class LogLevel(str, Enum):
    """The values of ``--log-level``."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


def _keep(ctx: typer.Context, param: typer.CallbackParam, value: Any) -> Any:
    """Keep a value for the command that is called in the end: a group and its command have the same options."""
    if value:
        ctx.meta[_CHOSEN + str(param.name)] = value
    return value


def _declared(
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", help="Show only errors and results.", callback=_keep, expose_value=False,
            rich_help_panel=PANEL,
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", help="Show details, and the messages of libraries.", callback=_keep, expose_value=False,
            rich_help_panel=PANEL,
        ),
    ] = False,
    log_level: Annotated[
        Optional[LogLevel],  # noqa: UP045
        typer.Option(
            "--log-level", metavar="LEVEL", help="Show log lines from debug, info, warning or error on.",
            callback=_keep, expose_value=False, case_sensitive=False, rich_help_panel=PANEL,
        ),
    ] = None,
) -> None:  # fmt: skip
    """The declaration of the options, which Typer turns into parameters of other commands."""


def add_common_options(command: Any) -> Any:
    """Add the common options to a command, and to those of a group; returns the command.

    A name that the command has for an option of its own stays with it.
    """
    if getattr(command, "has_common_options", False):
        return command
    command.has_common_options = True
    for nested in getattr(command, "commands", {}).values():
        add_common_options(nested)
    app = typer.Typer(add_completion=False)
    app.command()(_declared)
    taken = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    for option in typer.main.get_command(app).params:
        option.opts = [name for name in option.opts if name not in taken]
        if option.opts and option.name in ("quiet", "verbose", "log_level"):
            command.params.append(option)
    command.invoke = _invoking(command.invoke)
    return command


def _invoking(invoke: Any) -> Any:
    def invoked(ctx: Any) -> Any:
        with common_options(ctx):
            return invoke(ctx)

    return invoked


@contextmanager
def common_options(ctx: Any) -> Iterator[None]:
    """Apply the common options of a command's context while it runs."""
    chosen = {name: ctx.meta.get(_CHOSEN + name) for name in ("quiet", "verbose", "log_level")}
    if chosen["quiet"] and chosen["verbose"]:
        raise typer.BadParameter("give either --quiet or --verbose", ctx=ctx)
    level = chosen["log_level"]
    as_json = any(ctx.params.get(param.name) is True for param in ctx.command.params if "--json" in param.opts)
    shown = Output(bool(chosen["quiet"]), bool(chosen["verbose"]), as_json, level.value if level else "")
    with ExitStack() as stack:
        stack.enter_context(showing(shown))
        stack.enter_context(log_levels(shown))
        if shown.quiet:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        yield
