"""The documentation covers every hook with its arguments, its examples work, and its links lead somewhere."""

from __future__ import annotations

import inspect
import re
import sys
import types
from pathlib import Path

import pytest

from sftkit.plugin.base import Plugin
from sftkit.plugin.hookspecs import Hooks
from sftkit.testing import check_plugin

ROOT = Path(__file__).resolve().parents[2]
HOOKS = {name: value for name, value in vars(Hooks).items() if not name.startswith("_")}


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_documented_with_its_exact_arguments(name):
    arguments = list(inspect.signature(HOOKS[name]).parameters)[1:]
    assert f"\n## {name}({', '.join(arguments)})\n" in text("docs/hooks.md")


def test_no_hook_is_documented_that_does_not_exist():
    assert set(re.findall(r"^## (\w+)\(", text("docs/hooks.md"), re.MULTILINE)) == set(HOOKS)


@pytest.mark.parametrize("name", HOOKS)
def test_every_argument_of_a_hook_is_explained_in_its_docstring(name):
    documentation = inspect.getdoc(HOOKS[name]) or ""
    for argument in list(inspect.signature(HOOKS[name]).parameters)[1:]:
        if argument == "config":  # of many hooks
            assert "``config`` is the run as resolved" in (Hooks.__doc__ or "")
            continue
        assert re.search(rf"^\s*{argument}: ", documentation, re.MULTILINE), argument


@pytest.mark.parametrize("page", ["README.md", "docs/writing-a-plugin.md"])
def test_the_example_plugin_works(page, monkeypatch):
    code = next(block for block in re.findall(r"```python\n(.*?)```", text(page), re.DOTALL) if "(Plugin)" in block)
    module = types.ModuleType("documented_plugin")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(code, module.__dict__)
    (cls,) = [v for v in vars(module).values() if isinstance(v, type) and issubclass(v, Plugin) and v is not Plugin]
    check_plugin(cls(), without=("import", "run"))


@pytest.mark.parametrize(
    "page", sorted(p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
)
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text(page)):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target
