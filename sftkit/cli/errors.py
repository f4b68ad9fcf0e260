"""Errors of a command: for people on standard error, for programs as a JSON object on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from sftkit.errors import Problem
from sftkit.redact import hide


def show_problems(problems: Sequence[Problem], as_json: bool = False, label: str = "error", place: str = "") -> None:
    """Print problems, each with what is wrong, where, and how to fix it.

    In a terminal they are coloured, wrapped at spaces, and separated by empty lines; elsewhere each is one line.

    Args:
        problems: what to print.
        as_json: whether the command has ``--json``: print an object on standard output besides.
        label: what they are.
        place: which process they are of, where there are several.
    """
    if as_json:
        print_problems(problems)
    if not sys.stderr.isatty():
        for item in problems:
            print(f"{place}{label}: {item}", file=sys.stderr)  # noqa: T201
        return
    from sftkit.console import end_live, new_console, wrap

    end_live()
    screen = new_console(stderr=True)
    for number, item in enumerate(problems):
        if number:
            screen.print()
        parts = [(place, "dim"), (f"{label}:", "bold red")]
        if item.where:
            parts.append((f"{item.where}:", "cyan"))
        parts.append((item.what, "bold"))
        if item.fix:
            parts += [("\n->", "green"), (item.fix, "green")]
        for line in wrap(parts, screen.width, indent="  "):
            screen.print(line)


def print_problems(problems: Sequence[Problem]) -> None:
    """Print problems as a JSON object on standard output."""
    shown = [{"what": item.what, "where": item.where, "fix": item.fix} for item in problems]
    print(json.dumps({"error": shown}))  # noqa: T201


def place_of() -> tuple[str, bool]:
    """How messages name this process, and whether it is the first one.

    A launcher whose variables are wrong is an error of the command that needs them.
    """
    from sftkit.errors import ConfigError
    from sftkit.ranks import is_main_process, rank, world_size

    try:
        return f"process {rank()}: " * (world_size() > 1), is_main_process()
    except ConfigError:
        return "", True


def show_command(label: str, command: str, place: str = "") -> None:
    """Print a command to copy on standard error: in a terminal that is too narrow, whole on a line of its own."""
    command = hide(command)
    line = f"{place}{label}: {command}"
    if sys.stderr.isatty():
        from rich.text import Text

        from sftkit.console import new_console

        screen = new_console(stderr=True)
        between = " " if len(line) <= screen.width else "\n"
        text = Text(f"{place}{label}:", "bold").append(between).append(command, "green")
        screen.print(text, soft_wrap=True)
    else:
        print(line, file=sys.stderr)  # noqa: T201
