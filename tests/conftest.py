"""What the tests share: an offline environment, the command line as a process, and real data where it is there."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Before torch and the hub's client read them: the same results and no network, however pytest is called.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["SFTKIT_CACHE"] = tempfile.mkdtemp(prefix="sftkit-tests-")
os.environ["TOKENIZERS_PARALLELISM"] = "false"

FROZEN = [0]  # how many modules were loaded when their objects were frozen
ROOT = Path(__file__).resolve().parents[1]
Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_unconfigure() -> None:
    """The tests' cache goes with them."""
    shutil.rmtree(os.environ["SFTKIT_CACHE"], ignore_errors=True)


@pytest.fixture(autouse=True)
def process_as_before() -> Iterator[None]:
    """Variables that the command line and TRL's ``logging_dir`` set are not those of other tests."""
    yield
    for name in ("PYTHONSAFEPATH", "TENSORBOARD_LOGGING_DIR"):
        os.environ.pop(name, None)


@pytest.fixture(autouse=True, scope="module")
def libraries_are_not_collected() -> None:
    """Keep the objects of imported libraries out of garbage collections, which every training makes.

    With torch and transformers loaded there are a million of them, and a collection takes 0.3 s.
    """
    if len(sys.modules) > FROZEN[-1] + 300:
        gc.collect()
        gc.freeze()
        FROZEN.append(len(sys.modules))


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real data and tokenizers, which lie beside the checkout and are no part of it."""
    path = ROOT.parent / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"real data is not here: {path}")
    return path


@pytest.fixture(scope="session")
def fresh_cli() -> Cli:
    """Runs ``sftkit`` as a user does, in a fresh process, which takes seconds to import torch.

    Called with the arguments, ``cwd``, further variables ``env`` and the exit code to expect (0 by default).
    """
    program = Path(sys.executable).with_name("sftkit")

    def run(
        *arguments: object, cwd: Path, env: dict[str, str] | None = None, code: int = 0
    ) -> subprocess.CompletedProcess[str]:
        command = [str(program), *map(str, arguments)]
        variables = {**os.environ, "COLUMNS": "200", **(env or {})}
        return _checked(
            subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=600), code
        )

    return run


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """As ``fresh_cli``, but in a process that is forked from one that has imported torch already."""
    from sftkit.testing.processes import start_command, warm_processes

    context = warm_processes()

    def run(
        *arguments: object, cwd: Path, env: dict[str, str] | None = None, code: int = 0
    ) -> subprocess.CompletedProcess[str]:
        printed = tmp_path_factory.mktemp("printed")
        files = {"printed": printed / "stdout", "errors": printed / "stderr"}
        command = start_command(context, [*map(str, arguments)], cwd=cwd, env=env, **files)
        try:
            ended = command.wait(600)
        finally:
            command.end()
        texts = [path.read_text(encoding="utf-8") if path.exists() else "" for path in files.values()]
        return _checked(subprocess.CompletedProcess(["sftkit", *map(str, arguments)], ended, *texts), code)

    return run


def _checked(done: subprocess.CompletedProcess[str], code: int) -> subprocess.CompletedProcess[str]:
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """The command line in this process, which has loaded torch already: exit code and what was printed."""

    from sftkit.cli import main

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["sftkit", *map(str, arguments)])
        monkeypatch.setattr(sys, "path", [*sys.path])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out + printed.err

    return run
