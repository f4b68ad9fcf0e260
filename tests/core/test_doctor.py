"""`sftkit doctor`: what works here, for people and for bug reports."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import sftkit_commands.doctor.examine as examining
from sftkit_commands.doctor import doctor
from sftkit_commands.doctor.findings import Finding, Section
from sftkit_commands.doctor.packages import combinations
from sftkit_commands.doctor.show import as_markdown, show


def run(*arguments):
    app = typer.Typer()
    app.command()(doctor)
    return CliRunner().invoke(app, [*arguments])


@pytest.fixture(scope="module")
def report():
    """The report as data."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrst")
        done = run("--json")
    assert done.exit_code == 0, done.output
    assert "hf_abcdefghij" not in done.output
    return json.loads(done.stdout)


def test_each_subject_has_a_section(report):
    expected = "system devices versions combinations plugins attention precision several_processes directories"
    assert [title.replace(" ", "_") for title in report] == expected.split()


def test_attention_is_tried(report):
    assert report["attention"]["eager"]["value"] == "forward and backward"
    assert report["attention"]["sdpa"]["status"] == "ok"


def test_versions_are_those_that_are_installed(report):
    assert report["versions"]["torch"]["value"] == metadata.version("torch")


def test_a_plugin_without_its_package_has_the_command_that_installs_it(monkeypatch):
    from sftkit_commands.doctor import packages

    info = {"name": "odd", "status": 'missing: pip install "odd>=2"', "requires": ["odd>=2", "torch"]}
    monkeypatch.setattr(packages, "all_plugins", lambda: [info])
    assert packages.plugins().findings[1] == Finding("odd", "needs odd>=2", "no", 'pip install "odd>=2"')


def test_versions_that_sftkit_cannot_use_end_with_exit_code_2(monkeypatch):
    monkeypatch.setattr("sftkit_commands.doctor.packages._requirements", lambda name: ["torch>=99"])
    assert combinations().broken
    done = run()
    assert done.exit_code == 2
    assert "needs torch>=99" in done.stdout
    assert 'pip install "torch>=99"' in done.stdout


def test_the_home_directory_is_shortened():
    assert Finding("cache", f"{Path.home()}/x").value == "~/x"


def test_the_hub_is_only_asked_for_with_the_option(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    (hub, token) = examining._network()
    assert (hub.status, token.name) == ("no", "hub token")
    assert "cannot be reached" in hub.value


SECTIONS = [
    Section("Odd", [Finding("a fact", "word " * 40), Finding("broken", "why", "no", "pip install " + "x" * 90)])
]


def test_a_pipe_gets_markdown():
    assert as_markdown(SECTIONS).startswith("### Odd\n\n- a fact: word word")
    assert "- ✗ broken: why → `pip install xxx" in as_markdown(SECTIONS)


@pytest.mark.parametrize("width", [60, 80])
def test_lines_fit_the_terminal_and_commands_stay_whole(width, monkeypatch):
    import io

    from rich.console import Console

    screen = Console(file=io.StringIO(), width=width, force_terminal=True, soft_wrap=True, highlight=False)
    monkeypatch.setattr("sftkit_commands.doctor.show.console", lambda: screen)
    assert show(SECTIONS)
    lines = screen.file.getvalue().splitlines()
    assert any("pip install " + "x" * 90 in line for line in lines)
    assert all(len(line) <= width for line in lines if "→" not in line)
