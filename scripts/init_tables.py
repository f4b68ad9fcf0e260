"""The tables of `docs/init.md`, from the rules of `sftkit init --from`; run it after a change of the rules."""

from __future__ import annotations

from pathlib import Path

import _pages

from sftkit_commands.init import axolotl, llamafactory, trl
from sftkit_commands.init.axolotl_dataset import DATASET_RULES
from sftkit_commands.init.hf import OWN
from sftkit_commands.init.translation import Always, Handled, Lost, Rule, To

PAGE = Path(__file__).resolve().parents[1] / "docs" / "init.md"
HEADS = {"becomes": "becomes", "always": "needs no counterpart", "lost": "not translated"}


def tables() -> dict[str, str]:
    """The table of each tool, by its name in the page."""
    entry = {f"datasets[].{name}": rule for name, rule in DATASET_RULES.items()}
    described = {f"dataset_info.{name}": rule for name, rule in llamafactory.INFO_RULES.items()}
    mixed = {f"datasets[].{name}": rule for name, rule in trl.DATASET_RULES.items()}
    return {
        "axolotl": _table({**axolotl.RULES, **entry}),
        "llamafactory": _table({**llamafactory.RULES, **described}),
        "trl": _table({**trl.RULES, **mixed}),
        "TrainingArguments": _table(OWN),
    }


def _table(rules: dict[str, Rule]) -> str:
    grouped: dict[tuple[str, str], list[str]] = {}
    for key, rule in rules.items():
        grouped.setdefault(_row(rule), []).append(f"`{key}`")
    lines = ["| keys | | what becomes of them |", "|---|---|---|"]
    for column in HEADS:
        for (kind, text), keys in grouped.items():
            if kind == column:
                lines.append(f"| {', '.join(keys)} | {HEADS[kind]} | {text} |")
    return "\n".join(lines)


def _row(rule: Rule) -> tuple[str, str]:
    if isinstance(rule, To):
        return "becomes", f"`{rule.target}`" + (f"; {rule.note}" if rule.note else "")
    if isinstance(rule, Handled):
        return "becomes", rule.becomes.replace("|", "or")
    if isinstance(rule, Always):
        return "always", rule.reason
    assert isinstance(rule, Lost)
    return "lost", f"{rule.reason}; instead: {rule.fix}" if rule.fix else rule.reason


def with_tables(page: str) -> str:
    """The page with the tables as they are now."""
    for name, table in tables().items():
        page = _pages.between(PAGE, page, f"<!-- {name} -->", f"<!-- /{name} -->", table)
    return page


def pages() -> dict[Path, str]:
    """The page as it should be."""
    return {PAGE: with_tables(PAGE.read_text(encoding="utf-8"))}


if __name__ == "__main__":
    _pages.write(__doc__, "init_tables.py", pages)
