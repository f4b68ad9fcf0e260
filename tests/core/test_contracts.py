"""The import contracts of pyproject.toml cover what there is, and the public API is what it says."""

from __future__ import annotations

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import sftkit
from sftkit import api

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "datasets", "numpy", "peft")


def contracts():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return settings["tool"]["importlinter"]["contracts"]


def test_plugins_may_import_nothing_of_the_core_but_its_api():
    (contract,) = [item for item in contracts() if "import sftkit.api alone" in item["name"]]
    children = {f"sftkit.{module.name}" for module in pkgutil.iter_modules(sftkit.__path__)}
    assert set(contract["forbidden_modules"]) == children - {"sftkit.api"}


def test_no_contract_has_an_exception():
    assert not [item["name"] for item in contracts() if "ignore_imports" in item]


def test_every_name_of_the_api_exists():
    assert [name for name in api.__all__ if not hasattr(api, name)] == []
    assert set(dir(api)) == set(api.__all__)


def test_the_api_lists_for_type_checkers_what_it_loads():
    tree = ast.parse((ROOT / "sftkit" / "api.pyi").read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    listed = {(node.module.removeprefix("sftkit."), name.name) for node in imports for name in node.names}
    assert listed == {(module, name) for name, module in api._HOMES.items()}


def test_unknown_names_of_the_api_are_attribute_errors():
    with pytest.raises(AttributeError, match="has no attribute 'Plugins'"):
        api.Plugins  # noqa: B018


LIGHT = [
    "sftkit",
    "sftkit.api",
    "sftkit_commands.check",
    "sftkit_commands.check_plugin",
    "sftkit_commands.evaluate",
    "sftkit_commands.init",
    "sftkit_commands.new_plugin",
    "sftkit_commands.preview",
    "sftkit_commands.sweep",
    "sftkit_trl",
]


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_no_heavy_library(module):
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
