"""Shell completion: candidates for each place of the command line, without torch, and the scripts of the shells."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import typer

from sftkit.cli import app
from sftkit.cli.completion import VARIABLE, candidates, script

COMMAND = typer.main.get_command(app)


def complete(line):
    """The candidates for the last word of a line."""
    *words, incomplete = line.split(" ")
    return [value for value, _ in candidates(COMMAND, words, incomplete)]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with two runs, a configuration and other files."""
    for at, name in enumerate(("old", "new")):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        (run / "manifest.json").write_text("{}")
        os.utime(run / "manifest.json", (at, at))
    (tmp_path / "models").mkdir()
    for name in ("sft.yaml", "rows.jsonl", ".hidden.yaml"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)


def test_commands_and_options_are_completed():
    assert complete("pre") == ["prepare", "preview"]
    assert "clear" in complete("cache ")
    assert "--allow-change" in complete("run --al")
    assert "--temperature" in complete("chat --t")


@pytest.mark.parametrize("command", ["run", "check", "preview"])
def test_keys_of_the_configuration_are_completed(command):
    assert complete(f"{command} train.learning_r") == ["train.learning_rate="]
    assert complete(f"{command} data.max_l") == ["data.max_length="]
    assert complete(f"{command} tr") == ["train."]
    assert complete(f"{command} plugins.pef") == ["plugins.peft."]
    assert complete(f"{command} plugins.peft.al") == ["plugins.peft.alpha="]


def test_keys_that_a_configuration_cannot_set_are_not():
    assert complete("run train.push_to_hub_token") == complete("run train.do_train") == []


def test_values_of_a_choice_are_completed():
    assert complete("run model.dtype=") == [
        f"model.dtype={name}" for name in ("auto", "float32", "bfloat16", "float16")
    ]
    assert complete("run train.bf16=t") == ["train.bf16=true"]
    assert complete("run train.learning_rate=") == []


def test_plugins_and_their_options_are_completed():
    assert complete("run -p pef") == ["peft"]
    assert complete("run -p no:pac") == ["no:packing"]
    assert complete("run -p peft:r=2,al") == ["peft:r=2,alpha="]
    assert complete("run -p nix:") == []
    assert complete("plugins chat") == ["chatml"]


def test_files_and_runs_are_completed(place):
    assert {"sft.yaml", "models/", "runs/"} <= set(complete("run "))
    assert complete("run sf") == ["sft.yaml"]
    assert complete("run ./sf") == ["./sft.yaml"]
    assert complete("chat ")[:2] == ["runs/new", "runs/old"]
    assert complete("chat runs/o") == ["runs/old"]
    assert complete("chat mod") == ["models/"]
    assert complete("chat /no/such/") == []


def test_completion_loads_no_heavy_library():
    code = (
        "import sys, sftkit.cli as c\n"
        "try: c.main()\n"
        "finally: print(sorted({'torch', 'transformers', 'numpy', 'datasets', 'prompt_toolkit'} & sys.modules.keys()))"
    )
    for words in (["run", "train.lo"], ["run", "-p", "peft:"], [""], ["chat", "--"]):
        ran = subprocess.run(
            [sys.executable, "-c", code, *words], env={**os.environ, VARIABLE: "1"}, capture_output=True, text=True
        )
        *found, loaded = ran.stdout.splitlines()
        assert found, ran.stderr
        assert loaded == "[]"


def test_the_script_is_installed_once(tmp_path, monkeypatch, in_process):
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path)
    (tmp_path / ".bashrc").write_text("# mine")
    for _ in range(2):
        code, printed = in_process("--install-completion", "bash")
        assert code == 0
        assert "sftkit.sh" in printed
    assert (tmp_path / ".bashrc").read_text() == "# mine\nsource ~/.bash_completions/sftkit.sh\n"
    assert (tmp_path / ".bash_completions/sftkit.sh").read_text() == script("bash")
    assert in_process("--show-completion", "fish")[1] == script("fish")
    code, printed = in_process("--install-completion", "csh")
    assert code == 2
    assert "name one of bash, zsh, fish" in printed


@pytest.mark.slow
def test_bash_completes_keys_and_values(place, tmp_path):
    pexpect = pytest.importorskip("pexpect")
    program = tmp_path / "bin" / "sftkit"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m sftkit "$@"\n')
    program.chmod(0o755)
    (tmp_path / "rc").write_text(f"PS1='$ '\nPATH={program.parent}:$PATH\n{script('bash')}")
    shell = pexpect.spawn("bash", ["--noprofile", "--rcfile", str(tmp_path / "rc"), "-i"], encoding="utf-8", timeout=60)
    shell.expect(r"\$ ")
    for typed, shown in (
        ("sftkit run train.learning_r", "ate="),
        ("sftkit run train.bf16=t", "rue "),
        ("sftkit run -p peft:al", "pha="),
        ("sftkit run sf", "t.yaml "),
        ("sftkit run data.train=ro", "ws.jsonl "),
    ):
        shell.send(typed)
        shell.expect_exact(typed)
        shell.send("\t")
        shell.expect_exact(shown)
        shell.send("\x15")
    shell.close(force=True)
