"""Pages that are generated from the code: the command line, the hooks, and the Python API."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sftkit.cli.help import paragraphs, sections, usage

ROOT = Path(__file__).resolve().parents[2]
#: Names that the API hands on from pydantic.
OUTSIDE = {
    "Field": "## Field { .doc-heading }\n\npydantic's [`Field`](https://docs.pydantic.dev/latest/concepts/fields/): the description and "
    "the bounds of an option.",
    "dataclass": "## dataclass { .doc-heading }\n\npydantic's [`dataclass`](https://docs.pydantic.dev/latest/concepts/dataclasses/): "
    "write a plugin with `@dataclass(frozen=True, kw_only=True)`, and its options are validated.",
}
#: Names that are a module too.
IDENTIFIERS = {"output": "sftkit.console.output.output"}
BARE = "    options:\n      show_root_heading: false\n      show_root_toc_entry: false\n"


def navigation() -> list[Any]:
    """The generated pages, by title."""
    return [
        {"Commands and options": "reference/commands.md"},
        {"Hook specifications": "reference/hooks.md"},
        {"Python: sftkit": "reference/sftkit.md"},
        {"Python: sftkit.api": [{group: f"reference/api/{page_name(group)}.md"} for group in groups()]},
        {"Python: sftkit.testing": "reference/testing.md"},
    ]


def pages() -> dict[str, str]:
    """The text of each generated page; mkdocstrings puts docstrings in place of the lines that begin with ``:::``."""
    made = {
        "reference/commands.md": commands_page(),
        "reference/hooks.md": hooks_page(),
        "reference/sftkit.md": names_page(
            "sftkit",
            "sftkit",
            sorted(exported("sftkit/__init__.py"), key=str.lower),
            "What a script imports: `from sftkit import Pipeline`.",
        ),
        "reference/testing.md": "# sftkit.testing\n\n::: sftkit.testing\n" + BARE,
    }
    for group, names in groups().items():
        text = (
            "Of [`sftkit.api`](../../api.md), which is everything that plugins and commands import from sftkit: "
            f"`from sftkit.api import {names[0]}`."
        )
        made[f"reference/api/{page_name(group)}.md"] = names_page(group, "sftkit.api", names, text)
    return made


def page_name(group: str) -> str:
    return group.lower().replace(" ", "-")


def groups() -> dict[str, list[str]]:
    """The names of `sftkit.api` by the comments in its list."""
    source = (ROOT / "sftkit/api.py").read_text(encoding="utf-8").partition("_MODULES = {\n")[2].partition("\n}\n")[0]
    found: dict[str, list[str]] = {}
    for part in re.split(r"^    # ", source, flags=re.MULTILINE)[1:]:
        title, _, entries = part.partition("\n")
        listed = [name for texts in eval("{" + entries + "}").values() for name in texts.split()]
        found[title] = listed
    return found


def exported(path: str) -> list[str]:
    """The names in a module's ``__all__``."""
    listed = re.search(r"^__all__ = \[(.*?)\]", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert listed is not None
    return re.findall(r'"(\w+)"', listed[1])


def names_page(title: str, module: str, names: list[str], text: str) -> str:
    """A page with the documentation of some names of a module."""
    blocks = [OUTSIDE.get(name) or f"::: {IDENTIFIERS.get(name, f'{module}.{name}')}" for name in names]
    return f"# {title}\n\n{text}\n\n" + "\n\n".join(blocks) + "\n"


def hooks_page() -> str:
    """The listing of a run, and the specification of each hook with a link to its example."""
    from sftkit.plugin.hookspecs import Hooks

    text = "# Hook specifications\n\n::: sftkit.plugin.hookspecs\n" + BARE + "      members: false\n"
    for name, hook in vars(Hooks).items():
        if not name.startswith("_"):
            arguments = "-".join(list(inspect.signature(hook).parameters)[1:])
            text += f"\n::: sftkit.plugin.hookspecs.Hooks.{name}\n\n[Example](../hooks.md#{name}{arguments})\n"
    return text


def commands_page() -> str:
    """Every command of sftkit with its options, from its declaration."""
    import typer

    from sftkit.cli import app

    group = typer.main.get_command(app)
    parent = group.make_context("sftkit", [], resilient_parsing=True)
    text = ["# Commands and options", "What `sftkit COMMAND --help` shows. See [the command line](../command-line.md)."]
    text += [
        f"## Every command\n\n{table(sections(group.get_command(parent, 'run'), parent)['every command'], 'options')}"
    ]
    for name in sorted([*group.commands, *entry_points("sftkit.commands")]):
        text += command_text(group.get_command(parent, name), name, parent, "##")
    return "\n\n".join(text) + "\n"


def command_text(command: Any, name: str, parent: Any, heading: str) -> Iterator[str]:
    """The help of a command, and of the commands below it."""
    context = type(parent)(command, info_name=name, parent=parent)
    yield f"{heading} {name}"
    yield f"```text\n{usage(command, context)}\n```"
    for paragraph in paragraphs(command.help or ""):
        yield f"```text\n{inspect.cleandoc(paragraph)}\n```" if paragraph.startswith("  ") else plain(paragraph)
    for title, rows in sections(command, context).items():
        if title not in ("every command", "commands"):
            yield table(rows, title)
    for below, nested in sorted(getattr(command, "commands", {}).items()):
        yield from command_text(nested, below, context, heading + "#")


def entry_points(group: str) -> list[str]:
    """The names of sftkit's own entry points, whatever else is installed."""
    lines = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition(f'[project.entry-points."{group}"]\n')[2]
    return re.findall(r"^([\w-]+) = ", lines.partition("\n\n")[0], re.MULTILINE)


def table(rows: list[tuple[str, str]], title: str) -> str:
    """A table of names, in code, and what they mean."""
    lines = [f"| `{name.replace('|', chr(92) + '|')}` | {plain(text)} |" for name, text in rows]
    return "\n".join([f"| {title} | |", "|---|---|", *lines])


def plain(text: str) -> str:
    """Text of a terminal as Markdown: nothing but code in backticks is markup."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    escaped = [part if part.startswith("`") else re.sub(r"([\\\[\]*_<>])", r"\\\1", part) for part in parts]
    return "".join(escaped).replace("|", r"\|")
