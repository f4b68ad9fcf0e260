"""The page of `sftkit init` has every key that the translation knows, with what becomes of it."""

from __future__ import annotations

import inspect
import runpy
from pathlib import Path

from sftkit_commands.init import init

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "init.md").read_text(encoding="utf-8")


def test_the_tables_of_the_page_are_those_of_the_rules(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    made = runpy.run_path(str(ROOT / "scripts" / "init_tables.py"))["with_tables"](PAGE)
    assert made == PAGE, "run scripts/init_tables.py"
    assert PAGE.count("| needs no counterpart |") > 40


def test_the_page_names_every_option():
    for name in inspect.signature(init).parameters:
        option = {"source": "from", "kind": "format", "share": "eval"}.get(name, name)
        assert name == "file" or f"--{option}" in PAGE, option
