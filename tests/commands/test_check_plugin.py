"""``sftkit check-plugin`` shows the checks of a plugin."""

from __future__ import annotations

import json

import pytest

MODULE = '''
from contextlib import nullcontext
from typing import Annotated

from sftkit.api import Field, Plugin, dataclass, hookimpl


@dataclass(frozen=True, kw_only=True)
class NoNoise(Plugin):
    """Adds none, at a required strength."""

    needs_gpu = True
    strength: %s

    @hookimpl
    def inject_noise(self, model):
        return nullcontext()
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module with a broken plugin, in the working directory; the name differs, since modules are imported once."""

    def write(name, option='Annotated[float, Field(description="of the noise")]'):
        (tmp_path / f"{name}.py").write_text(MODULE % option)
        return name

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return write


def test_a_failed_check_ends_with_exit_code_2_and_its_fix(in_process, module):
    code, printed = in_process("check-plugin", f"{module('none_a', 'float')}:NoNoise:strength=0.5", "--quick")
    assert code == 2
    assert "failed plugin: no description of the option strength" in printed
    assert "-> annotate it: Annotated[float, Field(description" in printed
    assert "skipped inject_noise, run: it needs a GPU, and none is visible here" in printed
    assert "runs with several processes are left out (--quick)" in printed


def test_json_has_every_check_with_its_status(in_process, module):
    code, printed = in_process("check-plugin", f"{module('none_b')}:NoNoise:strength=1", "--quick", "--json")
    found = json.loads(printed)
    assert code == 0
    assert found["plugin"] == "none_b:NoNoise"
    noise = [each for each in found["checks"] if each["subject"] == "inject_noise"]
    assert noise
    assert {each["status"] for each in noise} == {"skipped"}
    assert {each["what"] for each in noise} == {"it needs a GPU, and none is visible here"}
    assert found["skipped"] == len([each for each in found["checks"] if each["status"] == "skipped"])


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["neftun"], "no plugin is named 'neftun'"),
        (["neftune:alhpa=1"], "did you mean 'alpha'?"),
        (["none_c:NoNoise"], "this option is required"),
        (["no:pad"], "names no plugin"),
        (["formats", "--rows", "nowhere.jsonl"], "cannot be read"),
        (["formats", "--rows", "bad.jsonl"], "bad.jsonl, line 2: the line is not JSON"),
    ],
)
def test_a_wrong_argument_is_an_error_that_says_what_is_wrong(in_process, module, tmp_path, arguments, what):
    module("none_c")
    (tmp_path / "bad.jsonl").write_text('{"text": "good"}\n{"text": bad}\n')
    code, printed = in_process("check-plugin", *arguments)
    assert code == 2
    assert what in " ".join(printed.split())


def test_a_command_has_no_hooks_to_check(in_process):
    code, text = in_process("check-plugin", "report")
    assert code == 2
    assert "report is a command, and has no hooks to check -> call it: `sftkit report --help`" in " ".join(text.split())
