"""The help of a command, the same for every one, whoever provides it: it fits the terminal, and words stay whole."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from typing import Any

NARROWEST, WIDEST, INDENT = 40, 100, 2
#: A name that is longer has a line for itself.
LONGEST_NAME = 24
Row = tuple[str, str]


def add_help(command: Any) -> Any:
    """Let a command, and those of a group, show their help in this way; returns the command."""
    command.format_help = lambda ctx, formatter: show_help(command, ctx)
    for nested in getattr(command, "commands", {}).values():
        add_help(nested)
    return command


def show_help(command: Any, ctx: Any) -> None:
    """Print the help of a command: usage, what it does, examples, arguments and options by group."""
    from rich.text import Text

    from sftkit.console import console, wrap

    screen = console()
    width = max(min(screen.width, WIDEST), NARROWEST)
    for line in wrap([("usage:", "bold"), (usage(command, ctx), "")], width, " " * 7):
        screen.print(line)
    for paragraph in paragraphs(command.help or ""):
        _print_paragraph(screen, paragraph, width)
    for title, rows in sections(command, ctx).items():
        screen.print(Text(f"\n{title}:", style="bold"))
        names = [len(name) for name, _ in rows if len(name) <= LONGEST_NAME]
        column = INDENT + max(names, default=0) + 2
        for name, text in rows:
            _print_row(screen, name, text, column, width)
    for paragraph in paragraphs(command.epilog or ""):
        _print_paragraph(screen, paragraph, width)


def usage(command: Any, ctx: Any) -> str:
    """How a command is called, in one line."""
    if hasattr(command, "list_commands"):
        return f"{ctx.command_path} COMMAND [OPTIONS]"
    arguments = [_name_of_argument(param) for param in command.params if param.param_type_name == "argument"]
    return " ".join([ctx.command_path, *arguments, "[OPTIONS]"])


def sections(command: Any, ctx: Any) -> dict[str, list[Row]]:
    """Arguments, commands and options by the title of their group, each with its text."""
    sections: dict[str, list[Row]] = {}
    for param in command.get_params(ctx):
        if getattr(param, "hidden", False):
            continue
        text = " ".join((getattr(param, "help", "") or "").split())
        if param.param_type_name == "argument":
            sections.setdefault("arguments", []).append((_name_of_argument(param), text))
        else:
            title = (getattr(param, "rich_help_panel", None) or "options").lower()
            sections.setdefault(title, []).append((_name_of_option(param), text + _default(param, ctx)))
    if "output" in sections:  # the common options come last, with --help
        sections.setdefault("options", [])
        common = sections.pop("output")
        helps = [row for row in sections["options"] if row[0].endswith("--help")]
        sections["options"] = [row for row in sections["options"] if row not in helps]
        sections["every command"] = [*common, *helps]
    if hasattr(command, "list_commands"):
        found = {name: command.get_command(ctx, name) for name in command.list_commands(ctx)}
        rows = [(name, _summary(item)) for name, item in found.items() if item and not item.hidden]
        sections = {"commands": rows, **sections}
    return {title: rows for title, rows in sections.items() if rows}


def _summary(command: Any) -> str:
    """The first sentence of a command's help."""
    first = " ".join(next(iter(paragraphs(command.help or "")), "").split())
    return re.split(r"(?<=\.)\s", first, maxsplit=1)[0]


def _name_of_argument(param: Any) -> str:
    name = str(param.metavar or param.name.upper())
    return name if param.required or name.startswith("[") else f"[{name}]"


def _name_of_option(param: Any) -> str:
    names = sorted([*param.opts, *param.secondary_opts], key=len)
    is_flag = getattr(param, "is_flag", False)
    value = "" if is_flag else f" {param.metavar or param.name.upper()}"
    return ", ".join(names) + value


def _default(param: Any, ctx: Any) -> str:
    default = param.get_default(ctx, call=False)
    if getattr(param, "required", False):
        return " Required."
    shown = not isinstance(default, bool) and isinstance(default, str | int | float) and str(default)
    return f" [{getattr(default, 'value', default)}]" if shown else ""


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a docstring, up to a form feed."""
    for part in re.split(r"\n[ \t]*\n", inspect.cleandoc(text.partition("\f")[0])):
        if part.strip():
            yield part


def _print_paragraph(screen: Any, paragraph: str, width: int) -> None:
    """Print a paragraph; one that is indented, such as an example, line by line."""
    from rich.text import Text

    from sftkit.console import wrap

    screen.print()
    if paragraph.startswith("  "):
        for line in inspect.cleandoc(paragraph).splitlines():
            screen.print(Text(f"  {line}", style="cyan"))
        return
    for wrapped in wrap([(" ".join(paragraph.split()), "")], width):
        screen.print(wrapped)


def _print_row(screen: Any, name: str, text: str, column: int, width: int) -> None:
    from rich.text import Text

    from sftkit.console import wrap

    head = Text(" " * INDENT).append(name, style="cyan")
    indent = " " * column
    lines: Iterable[Any] = wrap([(text, "")], width - column)
    if len(head) + 2 > column:
        screen.print(head)
        head = Text(indent)
    for line in lines:
        head.pad_right(column - len(head))
        screen.print(head.append_text(line))
        head = Text(indent)
