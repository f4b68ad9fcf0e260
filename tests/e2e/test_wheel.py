"""The wheel, installed in an environment of its own and used outside of the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory):
    directory = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(directory), str(root)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(directory.glob("sftkit_train-*.whl"))


@pytest.fixture(scope="module")
def fresh(wheel, tmp_path_factory):
    """The programs of a new environment that holds the wheel alone, and sees the dependencies of this one.

    A directory named in a .pth file is searched after the environment's own, and its .pth files are not read: the
    editable install of the checkout is out of sight.
    """
    directory = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
    python = directory / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", wheel], check=True)
    site = next(directory.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return python.parent


def run(fresh: Path, *command: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([fresh / command[0], *command[1:]], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files_beside_code(package: Path) -> set[str]:
    """Files in a package's directory that are not Python: data, templates, the type marker."""
    files = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(package.parent)) for path in files if path.suffix != ".py"}


def test_the_wheel_holds_every_data_file(root, wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = [root / "sftkit", *(root / "plugins").glob("sftkit_*")]
    expected = set().union(*map(files_beside_code, sources))
    assert {"sftkit/py.typed", "sftkit_plugins/py.typed", "sftkit/demo/run.yaml"} <= expected
    assert any(name.endswith(".jinja") for name in expected)
    assert expected <= names


def test_the_wheel_holds_the_packages_and_nothing_else(wheel):
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "sftkit",
        "sftkit_commands",
        "sftkit_plugins",
        "sftkit_trl",
    }


def test_the_wheel_holds_every_page_of_the_documentation(root, wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    pages = {path.relative_to(root / "docs").as_posix() for path in root.glob("docs/**/*.md")}
    assert {"agents.md", "packing.md", "plugins/packing.md"} <= pages
    assert {name for name in names if "/pages/" in name} == {f"sftkit_commands/docs/pages/{page}" for page in pages}


def test_the_installed_program_prints_a_page(root, fresh, tmp_path):
    assert run(fresh, "sftkit", "docs", "agents", cwd=tmp_path) == (root / "docs" / "agents.md").read_text()


def test_the_code_of_the_wheel_runs(fresh, tmp_path):
    code = "import sftkit, sftkit_plugins; print(sftkit.__file__); print(sftkit_plugins.__file__)"
    for line in run(fresh, "python", "-c", code, cwd=tmp_path).splitlines():
        assert Path(line).is_relative_to(fresh.parent)


@pytest.mark.slow
def test_the_installed_program_trains_with_plugins(fresh, tmp_path):
    flags = ("--plugin", "packing", "--plugin", "neftune", "--output", "out")
    run(fresh, "sftkit", "run", *flags, "train.max_steps=3", cwd=tmp_path)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["status"] == "done"
    assert {"packing", "neftune"} <= set(manifest["plugins"])
    assert Path(manifest["config"]["model"]["name"]).is_relative_to(fresh.parent)
    assert (tmp_path / "out" / "model.safetensors").exists()
