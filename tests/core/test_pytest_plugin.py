"""The fixtures that pytest offers wherever sftkit is installed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

TESTS = '''
from contextlib import contextmanager

from sftkit.api import Plugin, dataclass, hookimpl


@dataclass(frozen=True, kw_only=True)
class Noise(Plugin):
    """Noise on the embeddings."""

    @hookimpl
    @contextmanager
    def inject_noise(self, model):
        def add(module, inputs, output):
            return output + output.new_empty(output.shape).normal_() if model.training else output

        handle = model.get_input_embeddings().register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()


def test_it_passes(sftkit_check):
    report = sftkit_check(Noise(), without=("import", "run"))
    assert not report.failed


def test_it_trains(sftkit_run, sftkit_rows, sftkit_model, sftkit_tokenizer, tmp_path):
    assert len(sftkit_tokenizer) <= sftkit_model.get_input_embeddings().weight.shape[0]
    result = sftkit_run(Noise(), rows=sftkit_rows("prompt_completion", rows=4), train={"max_steps": 1})
    assert result.status == "trained"
    assert result.directory.parent == tmp_path
    again = sftkit_run(model=sftkit_model)
    assert again.directory != result.directory
'''


@pytest.fixture
def project(tmp_path):
    """Runs pytest in a project with a test file: what it prints, and its exit code."""

    def run(text, *arguments):
        (tmp_path / "test_it.py").write_text(text)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "sftkit.testing.pytest_plugin", *arguments]
        env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.mark.slow
def test_a_plugin_is_tested_with_the_fixtures(project):
    code, printed = project(TESTS)
    assert code == 0, printed
    assert "2 passed" in printed


def test_an_unrelated_project_imports_nothing_of_sftkit_but_the_fixtures(project):
    text = (
        "import sys\n\n\ndef test_it():\n"
        "    heavy = ('sftkit', 'pydantic', 'torch', 'numpy')\n"
        "    loaded = {name for name in sys.modules if name.split('.')[0] in heavy}\n"
        "    assert loaded == {'sftkit', 'sftkit.testing', 'sftkit.testing.pytest_plugin'}\n"
    )
    code, printed = project(text)
    assert code == 0, printed
