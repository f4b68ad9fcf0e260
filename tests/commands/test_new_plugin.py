"""The command new-plugin: projects whose tests pass at once, for each kind of plugin."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sftkit.api import API_VERSION
from sftkit.cli import app
from sftkit.plugin.calls import hook_names
from sftkit.plugin.registry import discover
from sftkit_commands.new_plugin.kinds import KINDS
from sftkit_commands.new_plugin.names import CORE_COMMANDS

PLUGINS = [name for name, kind in KINDS.items() if not kind.is_command]
#: In the quick run of tests; all other kinds are in the slow one.
QUICK = ("formatter", "noise")
#: A test of every project, which takes long: it starts runs, also with two processes.
LONG = "test_it_does_what_a_plugin_must"


@pytest.fixture(scope="module")
def projects(tmp_path_factory):
    """A directory with a project of each kind, such as ``noise`` with the plugin ``my_noise``, in the directory src."""
    from sftkit_commands.new_plugin.names import Names
    from sftkit_commands.new_plugin.project import Project

    directory = tmp_path_factory.mktemp("projects")
    for name, kind in KINDS.items():
        Project(Names.of(f"my-{name}", kind.is_command), kind, directory / name).write()
    return directory


def install(target: Path, *sources: Path) -> Path:
    """Install projects with pip into a directory."""
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index")
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", target, *sources], check=True)
    return target


@pytest.fixture(scope="module")
def hello(root):
    """The distribution sftkit-hello, with several plugins and a command."""
    return root / "tests" / "external" / "sftkit-hello"


@pytest.fixture(scope="module")
def all_installed(projects, hello, tmp_path_factory):
    return install(tmp_path_factory.mktemp("all"), *projects.iterdir(), hello)


@pytest.fixture
def new(in_process, tmp_path, monkeypatch):
    """The command, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: in_process("new-plugin", *arguments)


class Outcomes:
    """A plugin of pytest that collects the outcome of each test."""

    def __init__(self):
        self.failed, self.passed = {}, []

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed[report.nodeid] = str(report.longrepr)
        elif report.when == "call" and report.passed:
            self.passed.append(report.nodeid)

    def pytest_collectreport(self, report):
        if report.failed:
            self.failed[report.nodeid] = str(report.longrepr)


def test_it_says_what_was_written_and_what_comes_next(new, tmp_path):
    code, text = new("word-noise", "--kind", "noise")
    assert code == 0
    files = sorted(str(path.relative_to("sftkit-word-noise")) for path in Path("sftkit-word-noise").rglob("*"))
    assert {"pyproject.toml", "README.md", "src/sftkit_word_noise/__init__.py", "tests/test_word_noise.py"} < {*files}
    assert [name for name in files if Path("sftkit-word-noise", name).is_file() and f"  {name}\n" not in text] == []
    commands = ('pip install -e ".[dev]"', "pytest", "sftkit check-plugin word_noise", "sftkit run -p word_noise")
    assert [command for command in ("cd sftkit-word-noise", *commands) if f"\n  {command}" not in text] == []


def test_json_has_the_files_and_the_next_commands(new, tmp_path):
    code, text = new("my_count", "--kind", "command", "--to", "elsewhere", "--json")
    found = json.loads(text)
    assert (code, found["directory"], "sftkit my-count" in found["next"]) == (0, "elsewhere", True)
    assert all((tmp_path / "elsewhere" / name).is_file() for name in found["files"])


REFUSED = [
    (("Word Noise",), "'Word Noise' cannot be the name of a plugin -> use small letters", "as in word-noise"),
    (("2fast",), "cannot be the name of a plugin", "as in fast"),
    (("__",), "cannot be the name of a plugin", "as in word-noise"),
    (("x" * 41,), "the name has 41 letters", "use at most 40"),
    (("no",), "-p no:NAME drops a plugin", "choose another name"),
    (("flash-attn",), "the plugin flash_attn is installed already by sftkit-train", "choose another name"),
    (("sftkit-packing",), "the plugin packing is installed already", "choose another name"),
    (("train",), "sftkit-train is sftkit", "choose another name"),
    (("commands",), "sftkit_commands is installed already", "choose another name"),
    (("check", "--kind=command"), "the command check is installed already", "choose another name"),
    (("schema", "--kind=command"), "the command schema is installed already", "choose another name"),
    (("fine", "--kind=nois"), "there is no kind 'nois'", "did you mean 'noise'?"),
    (("fine", "--to=full"), "full: the directory is not empty", "choose another directory with --to"),
    (("fine", "--to=full/file"), "full/file: the file exists", "choose another directory with --to"),
]


@pytest.mark.parametrize(("arguments", "what", "fix"), REFUSED)
def test_what_cannot_be_written_is_an_error(new, tmp_path, arguments, what, fix):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    code, text = new("--kind=noise", *arguments)
    assert code == 2
    assert what in text
    assert fix in text
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "full"]


def test_the_commands_of_the_core_are_known():
    assert {command.name or command.callback.__name__ for command in app.registered_commands} | {
        group.name for group in app.registered_groups
    } == {*CORE_COMMANDS}


CLASHES = ["field", "plugin", "none", "any", "tensor", "class", "annotated", "questions"]


@pytest.mark.parametrize("name", CLASHES)
def test_a_name_that_the_code_uses_already_does_no_harm(new, tmp_path, monkeypatch, name):
    assert new(name, "--kind", "formatter")[0] == 0
    monkeypatch.syspath_prepend(str(tmp_path / f"sftkit-{name}" / "src"))
    module = __import__(f"sftkit_{name}")
    (cls,) = [value for value in vars(module).values() if hasattr(value, "make_formatter")]
    assert cls().make_formatter({"question": "string", "answer": "string"}).columns_used == {"question", "answer"}


def test_the_documentation_lists_every_kind_with_its_hooks(root):
    page = (root / "docs" / "writing-a-plugin.md").read_text(encoding="utf-8")
    for name, kind in KINDS.items():
        hooks = ", ".join(f"`{hook}`" for hook in kind.hooks) or "a [command](api.md#commands)"
        assert f"| `{name}` | {hooks} | " in page


def test_every_kind_fills_hooks_that_exist():
    assert [hook for kind in KINDS.values() for hook in kind.hooks if hook not in hook_names()] == []


def test_every_project_states_the_api_and_no_other_package_than_sftkit(projects):
    for name in PLUGINS:
        code = (projects / name / "src" / f"sftkit_my_{name}" / "__init__.py").read_text(encoding="utf-8")
        assert f'    api = "{API_VERSION}"\n' in code
    for file in projects.glob("*/pyproject.toml"):
        assert 'dependencies = ["sftkit-train>=' in file.read_text(encoding="utf-8")


def test_the_plugins_are_found_and_their_tests_pass(projects, tmp_path, monkeypatch):
    site = install(tmp_path / "site", *(projects / name for name in QUICK))
    monkeypatch.syspath_prepend(str(site))
    assert {f"my_{name}" for name in QUICK} <= {*discover()}
    for name in QUICK:
        outcomes, project = Outcomes(), projects / name
        options = ["-p", "no:cacheprovider", "-s", "-k", f"not {LONG}", "-c", str(project / "pyproject.toml")]
        options.append(str(project))
        assert pytest.main(options, [outcomes]) == 0, outcomes.failed
        assert len(outcomes.passed) >= 3


@pytest.mark.slow
def test_the_tests_of_every_kind_and_of_the_example_pass(projects, all_installed, hello):
    places = [projects, hello / "tests"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--import-mode=importlib", *places]
    command += ["--rootdir", projects, "-c", projects / "noise" / "pyproject.toml"]
    paths = os.pathsep.join([str(all_installed), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, cwd=projects, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", PLUGINS)
def test_the_run_that_is_printed_uses_the_plugin(name, projects, all_installed, in_process, tmp_path, monkeypatch):
    from sftkit_commands.new_plugin.project import Names, Project

    monkeypatch.syspath_prepend(str(all_installed))
    monkeypatch.chdir(projects / name)
    printed = Project(Names.of(f"x-{name}", False), KINDS[name], tmp_path).run_command.replace("x_", "my_")
    code, text = in_process(
        *shlex.split(printed)[1:], "-o", tmp_path / "run", "train.max_steps=2", "train.use_cpu=true"
    )
    assert code == 0, text
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["status"] == "done"
    assert manifest["plugins"][f"my_{name}"] == {"distribution": f"sftkit-my-{name}", "version": "0.1.0"}


@pytest.mark.slow
def test_every_project_passes_its_own_linters(projects, root, tmp_path):
    programs = Path(sys.executable).parent
    for command in (["ruff", "check", "--no-cache"], ["ruff", "format", "--check", "--no-cache"]):
        done = subprocess.run([programs / command[0], *command[1:], projects], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    config = projects / "noise" / "pyproject.toml"
    sources = [*projects.glob("*/src/*")]
    variables = {**os.environ, "MYPYPATH": os.pathsep.join([str(root), str(root / "plugins")])}
    command = [programs / "mypy", "--config-file", config, "--cache-dir", tmp_path, "--follow-imports=silent", *sources]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
