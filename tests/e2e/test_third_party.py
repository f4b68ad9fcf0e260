"""Plugins from other distributions: installed with pip and found, and harmless to others where they are broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROWS = [{"greeting": f"hello {name}", "reply": f"good day, {name}"} for name in ("Ada", "Kurt", "Emmy", "Alan")]

BROKEN = "raise RuntimeError('boo')"
TWIN = """
from sftkit.api import Plugin, dataclass

@dataclass(frozen=True, kw_only=True)
class Twin(Plugin):
    \"\"\"One of two.\"\"\"
"""


@pytest.fixture(scope="module")
def hello(root, tmp_path_factory):
    """A directory with the distribution sftkit-hello, as pip installs it."""
    target = tmp_path_factory.mktemp("hello")
    options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index")
    source = root / "tests" / "external" / "sftkit-hello"
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", target, source], check=True)
    return target


@pytest.fixture(scope="module")
def greetings(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "greetings.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    return path


def install(
    directory: Path, distribution: str, entry_points: dict[str, str], code: str = "", group: str = "sftkit"
) -> Path:
    """Write what pip would install: a module named after the distribution, and its metadata."""
    module = distribution.replace("-", "_")
    info = directory / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in entry_points.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
    (directory / f"{module}.py").write_text(code)
    return directory


def on_path(*directories: Path) -> dict[str, str]:
    return {"PYTHONPATH": os.pathsep.join(map(str, directories))}


def listed(fresh_cli, tmp_path, *directories):
    plugins = json.loads(fresh_cli("plugins", "--json", cwd=tmp_path, env=on_path(*directories)).stdout)
    return {item["name"]: item for item in plugins["plugins"]}


@pytest.fixture
def third_party(in_process, monkeypatch, tmp_path):
    """The command line in this process, with the distributions in these directories installed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, places: tuple[Path, ...]) -> tuple[int, str]:
        for place in places:
            monkeypatch.syspath_prepend(str(place))
        return in_process(*arguments)

    return run


def demo_run(data, output, *plugins):
    flags = [item for name in plugins for item in ("-p", name)]
    model = ("model.name=demo", "model.init=random")
    return ("run", *model, "--data", data, *flags, "--output", output, "train.max_steps=2")


def test_an_installed_distributions_plugins_are_listed_with_its_name_and_version(fresh_cli, hello, tmp_path):
    found = listed(fresh_cli, tmp_path, hello)
    hooks = {"hello_format": "make_formatter", "hello_noise": "inject_noise", "hello_check": "check_prepared"}
    for name, hook in hooks.items():
        assert (found[name]["distribution"], found[name]["version"]) == ("sftkit-hello", "0.1.0")
        assert found[name]["status"] == "ready"
        assert found[name]["hooks"] == [hook]


@pytest.mark.slow
def test_a_third_party_format_and_noise_train_from_the_command_line(fresh_cli, hello, greetings, tmp_path):
    output = tmp_path / "run"
    fresh_cli(*demo_run(greetings, output, "hello_format", "hello_noise:scale=0.1"), cwd=tmp_path, env=on_path(hello))
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["status"] == "done"
    assert manifest["config"]["plugins"]["hello_noise"] == {"scale": 0.1}
    assert manifest["plugins"]["hello_format"] == {"distribution": "sftkit-hello", "version": "0.1.0"}
    counts = manifest["data"]["train"]
    assert counts["rows"] == len(ROWS)
    assert 0 < counts["trained tokens"] < counts["tokens"]


def test_columns_that_only_a_plugin_knows_are_refused_without_it(third_party, hello, greetings, tmp_path):
    code, output = third_party(*demo_run(greetings, tmp_path / "run"), places=(hello,))
    assert code == 2
    assert "greeting" in output
    assert not (tmp_path / "run").exists()


def test_a_third_party_plugins_options_are_checked_like_any_others(fresh_cli, hello, greetings, tmp_path):
    arguments = demo_run(greetings, tmp_path / "run", "hello_format", "hello_noise:scael=0.1")
    done = fresh_cli(*arguments, cwd=tmp_path, env=on_path(hello), code=2)
    assert "plugin hello_noise, option scael: no such option -> did you mean 'scale'?" in done.stderr


def test_a_broken_plugin_is_told_as_broken_and_harms_no_other(fresh_cli, tmp_path):
    broken = install(
        tmp_path / "site", "sftkit-broken", {"broken": "sftkit_broken:Broken"}, "raise RuntimeError('boo')"
    )
    found = listed(fresh_cli, tmp_path, broken)
    assert found["broken"]["status"] == "broken: RuntimeError: boo"
    assert found["packing"]["status"] == "ready"
    for command in (["--help"], ["schema"], ["plugins", "packing"]):
        fresh_cli(*command, cwd=tmp_path, env=on_path(broken))


def test_a_broken_plugin_stops_the_run_that_selects_it_and_no_other(third_party, greetings, hello, tmp_path):
    broken = install(tmp_path / "site", "sftkit-broken", {"broken": "sftkit_broken:Broken"}, BROKEN)
    places = (broken, hello)
    code, output = third_party(*demo_run(greetings, tmp_path / "run", "hello_format", "broken"), places=places)
    assert code == 2
    assert "plugin 'broken' is broken: RuntimeError: boo" in output
    assert "Traceback" not in output
    assert third_party(*demo_run(greetings, tmp_path / "run", "hello_format"), places=places)[0] == 0


def test_two_distributions_that_claim_one_name_are_both_named_and_neither_is_taken(fresh_cli, tmp_path):
    one = install(tmp_path / "one", "sftkit-one", {"twin": "sftkit_one:Twin"}, TWIN)
    two = install(tmp_path / "two", "sftkit-two", {"twin": "sftkit_two:Twin"}, TWIN)
    found = listed(fresh_cli, tmp_path, one, two)
    assert found["twin"]["distribution"] == "sftkit-one, sftkit-two"
    assert found["twin"]["status"].startswith("broken: two distributions claim the plugin name 'twin'")
    done = fresh_cli("run", "-p", "twin", "-o", "run", cwd=tmp_path, env=on_path(one, two), code=2)
    assert "two distributions claim the plugin name 'twin': sftkit-one and sftkit-two" in done.stderr
    assert "-p sftkit_one:Twin" in done.stderr


def test_a_third_party_check_is_shown_by_check_and_stops_a_run(third_party, hello, greetings, tmp_path):
    arguments = demo_run(greetings, tmp_path / "run", "hello_format", "hello_check:least=5")
    code, output = third_party(*arguments, places=(hello,))
    assert code == 2
    assert "error: data.train: there are only 4 rows -> add some" in output
    assert not (tmp_path / "run" / "manifest.json").exists()
    code, output = third_party("check", *arguments[1:-1], "--json", places=(hello,))
    assert code == 2
    verdicts = {item["name"]: item["status"] for item in json.loads(output)["verdicts"]}
    assert verdicts["greetings"] == "wrong"
    assert verdicts["steps"] == "ok"


def test_a_third_party_command_is_listed_and_runs(fresh_cli, hello, greetings, tmp_path):
    places = on_path(hello)
    assert "Say how many rows a run trains on." in fresh_cli("--help", cwd=tmp_path, env=places).stdout
    arguments = ("model.name=demo", "model.init=random", "-d", greetings, "-p", "hello_format")
    assert fresh_cli("hello", *arguments, cwd=tmp_path, env=places).stdout == "hello, 4 rows\n"


@pytest.mark.parametrize("code", ["raise RuntimeError('boo')", "raise SystemExit(3)", "hello = 3"])
def test_a_broken_command_is_listed_as_broken_and_harms_no_other(fresh_cli, code, tmp_path):
    site = install(tmp_path / "site", "sftkit-sad", {"sad": "sftkit_sad:hello"}, code, group="sftkit.commands")
    places = on_path(site)
    assert "Broken:" in fresh_cli("--help", cwd=tmp_path, env=places).stdout
    fresh_cli("check", "--help", cwd=tmp_path, env=places)
    done = fresh_cli("sad", "--any", "thing", cwd=tmp_path, env=places, code=2)
    assert "the command is broken" in done.stderr
    assert "sftkit-sad" in done.stderr
    assert "Traceback" not in done.stderr


def test_calling_one_command_imports_no_other(fresh_cli, tmp_path):
    site = install(tmp_path / "site", "sftkit-loud", {"loud": "sftkit_loud:hello"}, "print('LOUD')", "sftkit.commands")
    assert "LOUD" not in fresh_cli("check", "--help", cwd=tmp_path, env=on_path(site)).stdout
    assert "LOUD" not in fresh_cli("plugins", cwd=tmp_path, env=on_path(site)).stdout


def test_two_distributions_with_one_command_name_make_it_broken(fresh_cli, tmp_path):
    code = "def hello():\n    pass\n"
    one = install(tmp_path / "one", "sftkit-one", {"twin": "sftkit_one:hello"}, code, "sftkit.commands")
    two = install(tmp_path / "two", "sftkit-two", {"twin": "sftkit_two:hello"}, code, "sftkit.commands")
    done = fresh_cli("twin", cwd=tmp_path, env=on_path(one, two), code=2)
    assert "two distributions provide it: sftkit-one and sftkit-two" in done.stderr


def test_a_plugin_that_exits_during_its_import_is_broken_like_any_other(fresh_cli, tmp_path):
    site = install(tmp_path / "site", "sftkit-exit", {"leaves": "sftkit_exit:Leaves"}, "raise SystemExit(5)")
    assert listed(fresh_cli, tmp_path, site)["leaves"]["status"] == "broken: SystemExit: 5"
    done = fresh_cli("run", "-p", "leaves", "-o", "run", cwd=tmp_path, env=on_path(site), code=2)
    assert "plugin 'leaves' is broken: SystemExit: 5" in done.stderr
