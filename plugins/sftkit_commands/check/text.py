"""What `sftkit check` found, in the terminal: first what is wrong, then the warnings, then what is right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sftkit.api import console, output, show_data, show_table, without_notes, wrap

if TYPE_CHECKING:
    from rich.console import Console

    from sftkit.api import Verdict
    from sftkit_commands.check.checks import Report

STYLES = {"wrong": "bold red", "warn": "yellow", "ok": "green"}
#: Checks that are shown in full even if nothing is wrong: what is ignored in the data, for one.
IN_FULL = ("noted",)
WIDEST_BAR = 40
BEFORE = "before cutting and packing"
GROUP = ("group", "weights", "learning rate", "weight decay")
SECTIONS = ("model.", "data.", "train.", "evaluate.", "run.", "plugins.")


def show_report(report: Report) -> None:
    """Print the counts of the data, the memory, and the verdicts; the last line says what to do."""
    screen, shown = console(), output()
    if report.data and not shown.quiet:
        show_data(screen, {split: _counts(stats) for split, stats in report.data.items()})
        for split, stats in report.data.items():
            lengths = stats.get(BEFORE, {}).get("lengths", {})
            if lengths:
                _show_lengths(screen, split, lengths)
    if (memory := report.details("memory")) and not shown.quiet:
        sizes = [(name, f"{size / 1e9:.3f}") for name, size in memory["items"].items() if size]
        total = ("peak", f"{memory['total'] / 1e9:.3f}")
        screen.print()
        show_table(screen, f"Memory on {memory['device']}", ("item", "GB"), [*sizes, total])
    if (made := report.details("optimizer")) and not shown.quiet:
        screen.print()
        show_table(screen, f"Optimizer {made['optimizer']}", GROUP, [_group(group) for group in made["groups"]])
    if report.data and not shown.quiet:
        screen.print()
    found = {status: [item for item in report.verdicts if item.status == status] for status in STYLES}
    for item in (*found["wrong"], *found["warn"]):
        _show_verdict(screen, item)
    in_full = [item for item in found["ok"] if shown.verbose or item.name in IN_FULL]
    for item in () if shown.quiet else in_full:
        _show_verdict(screen, item)
    names = ", ".join(dict.fromkeys(item.name for item in found["ok"] if item not in in_full))
    if names and not shown.quiet:
        _print(screen, [("ok", STYLES["ok"]), (names, "")])
    _show_end(screen, found["wrong"], found["warn"])


def _group(group: dict[str, Any]) -> tuple[str, str, str, str]:
    """A row of the table of the optimizer's groups."""
    rates = (f"{group['learning_rate']:.4g}", f"{group['weight_decay']:g}")
    return (group["name"], f"{group['weights']:,}", *rates)


def _show_verdict(screen: Console, verdict: Verdict) -> None:
    """Print a verdict: its status and name, what was found, and the fix on a line of its own."""
    head = [(verdict.status, STYLES[verdict.status]), (f"{verdict.name}:", "bold")]
    fix = [("\n->", "cyan"), (verdict.fix, "cyan")] if verdict.fix else []
    place = [(f"{verdict.where}:", "")] if verdict.where and verdict.status == "wrong" else []
    _print(screen, [*head, *place, (verdict.what, ""), *fix])


def _show_end(screen: Console, wrong: Sequence[Verdict], warned: Sequence[Verdict]) -> None:
    if not wrong and not warned:
        _print(screen, [("nothing is wrong", STYLES["ok"])])
        return
    counts = f"{len(wrong)} wrong, {len(warned)} to look at"
    names = ", ".join(dict.fromkeys(map(_subject, wrong or warned)))
    if wrong:
        _print(screen, [(f"{counts}: fix {names}, then check again", STYLES["wrong"])])
    else:
        _print(screen, [(f"{counts}: {names}", STYLES["warn"])])


def _subject(verdict: Verdict) -> str:
    """What a verdict is about: a key of the configuration if it names one, else the check."""
    _, comma, key = verdict.where.rpartition(", ")
    named = comma or key.startswith(SECTIONS)
    return key if verdict.name == "configuration" and named else verdict.name


def _print(screen: Console, parts: list[tuple[str, str]]) -> None:
    if not screen.is_terminal:  # a line for each, whatever its length
        screen.print(" ".join(text.replace("\n", "") for text, _ in parts), markup=False)
        return
    for line in wrap(parts, screen.width, indent="     "):
        screen.print(line)


def _counts(stats: dict[str, Any]) -> dict[str, Any]:
    """The counts of a split without its notes, which have verdicts."""
    return {name: value for name, value in without_notes(stats).items() if name != BEFORE}


def _show_lengths(screen: Console, split: str, lengths: dict[str, int]) -> None:
    most = max(lengths.values())
    room = max(min(WIDEST_BAR, screen.width - 20), 1)
    screen.print(f"\ntokens a row, {split}", style="bold", markup=False)
    for bound, number in lengths.items():
        screen.print(f"{'≤ ' + bound:>8} {'█' * max(round(room * number / most), 1)} {number:,}", markup=False)
