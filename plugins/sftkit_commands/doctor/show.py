"""The report for a terminal, as Markdown, and as data."""

from __future__ import annotations

import textwrap
from typing import Any

from sftkit.api import console
from sftkit_commands.doctor.findings import Finding, Section

MARKS = {"": " ", "ok": "✓", "no": "✗", "wrong": "!"}
STYLES = {"": "", "ok": "green", "no": "yellow", "wrong": "bold red"}
NAME = 20  # columns of a name; a longer one stands on a line of its own
WIDEST = 100


def as_data(sections: list[Section]) -> dict[str, Any]:
    """Plain data, for ``--json``."""
    return {
        section.title.lower(): {
            each.name: {"value": each.value, "status": each.status or "fact", "fix": each.fix}
            for each in section.findings
        }
        for section in sections
    }


def as_markdown(sections: list[Section]) -> str:
    """Markdown for a bug report."""
    blocks = []
    for section in sections:
        lines = [f"- {f'{MARKS[each.status]} '.lstrip()}{_line(each)}" for each in section.findings]
        blocks.append("\n".join([f"### {section.title}", "", *lines]))
    return "\n\n".join(blocks)


def _line(finding: Finding) -> str:
    fix = f" → `{finding.fix}`" if finding.fix else ""
    return f"{finding.name}{': ' if finding.value else ''}{finding.value}{fix}"


def show(sections: list[Section]) -> bool:
    """Print the report; returns False, and prints nothing, if this is no terminal."""
    from rich.text import Text

    screen = console()
    if not screen.is_terminal:
        return False
    for section in sections:
        screen.print(f"\n{section.title}", style="bold", markup=False)
        for finding in section.findings:
            for number, line in enumerate(_wrapped(finding, min(screen.width, WIDEST))):
                text = Text(line)
                if number == 0:
                    text.stylize(STYLES[finding.status], 2, 3)
                screen.print(text)
            if finding.fix:  # on one line, so that it can be copied
                screen.print(Text(f"    → {finding.fix}", style="cyan"))
    return True


def _wrapped(finding: Finding, width: int) -> list[str]:
    indent = NAME + 5
    name = f"{finding.name:<{NAME}} " if len(finding.name) <= NAME else f"{finding.name}\n"
    head = f"  {MARKS[finding.status]} {name}"
    lines = textwrap.wrap(finding.value, max(width - indent, 20), break_on_hyphens=False) or [""]
    first, *rest = lines
    if "\n" in head:
        return [head.rstrip(), *(" " * indent + line for line in lines)]
    return [f"{head}{first}".rstrip(), *(" " * indent + line for line in rest)]
