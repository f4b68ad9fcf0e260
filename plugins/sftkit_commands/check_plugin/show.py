"""The report of a plugin's checks: a table of all, then what failed with its fix, and why others were skipped."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from sftkit.api import ConfigError, Problem, console, output, show_table, wrap

if TYPE_CHECKING:
    from sftkit.api import CheckResult, PluginReport

STYLES = {"passed": "green", "failed": "bold red", "skipped": "yellow"}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines.

    Raises:
        ConfigError: if it cannot be read, or a line is no JSON object.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        what = f"it cannot be read: {error.strerror if isinstance(error, OSError) else error}"
        raise ConfigError(Problem(what, f"--rows {path}", "name a file of JSON lines")) from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            what = f"the line is not JSON: {error}"
            raise ConfigError(Problem(what, f"{path}, line {number}", "write one JSON object a line")) from error
        if not isinstance(rows[-1], dict):
            raise ConfigError(Problem("the line is no JSON object", f"{path}, line {number}", "write one a line"))
    if not rows:
        raise ConfigError(Problem("it has no rows", f"--rows {path}", "write one JSON object a line"))
    return rows


def as_data(report: PluginReport) -> dict[str, Any]:
    """The report for ``--json``."""
    counts = {status: len(getattr(report, status)) for status in STYLES}
    return {"plugin": report.plugin, **counts, "checks": [dataclasses.asdict(result) for result in report.results]}


def show(report: PluginReport) -> None:
    """Print the report; with ``--quiet``, only what failed and the counts."""
    screen = console()
    if not output().quiet:
        rows = [_row(result, earlier) for result, earlier in zip(report.results, [None, *report.results], strict=False)]
        show_table(screen, f"Plugin {report.plugin}", ("hook", "check", "result"), rows)
        screen.print()
        for reason, subjects in report.reasons.items():
            _print([("skipped", STYLES["skipped"]), (f"{', '.join(subjects)}:", "bold"), (reason, "")])
    for result in report.failed:
        _print([("failed", STYLES["failed"]), (f"{result.subject}:", "bold"), (f"{result.what}", "")])
        _print([("    ->", "cyan"), (result.fix, "cyan")])
    passed, failed, skipped = (len(getattr(report, status)) for status in STYLES)
    _print([(f"{passed} passed, {failed} failed, {skipped} skipped", STYLES["failed" if failed else "passed"])])


def _row(result: CheckResult, earlier: CheckResult | None) -> tuple[Any, ...]:
    """A line of the table; a hook is named once."""
    hook = "" if earlier is not None and earlier.subject == result.subject else result.subject
    return hook, result.check, Text(result.status, style=STYLES[result.status])


def _print(parts: list[tuple[str, str]]) -> None:
    screen = console()
    if not screen.is_terminal:  # a line for each, whatever its length
        screen.print(" ".join(text for text, _ in parts), markup=False)
        return
    for line in wrap(parts, screen.width, indent="     "):
        screen.print(line)


def refuse_command(name: str) -> None:
    """Say of the name of an installed command that commands have no hooks.

    Raises:
        ConfigError: if it is one, and no plugin has this name.
    """
    from importlib import metadata

    known = {
        kind: {point.name for point in metadata.entry_points(group=kind)} for kind in ("sftkit", "sftkit.commands")
    }
    if name in known["sftkit.commands"] - known["sftkit"]:
        fix = f"call it: `sftkit {name} --help`; the tests of its project check it"
        raise ConfigError(Problem(f"{name} is a command, and has no hooks to check", "check-plugin", fix))
