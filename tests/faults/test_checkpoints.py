"""Rows 1 to 6 of the table of faults: checkpoints that were interrupted, damaged or left incomplete."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from sftkit import checkpoints
from sftkit.checkpoints import newest

#: A plugin whose faults happen at an exact moment: at the n-th time that Python touches a checkpoint being saved.
PLUGIN = '''
import collections, os, resource, shutil, signal, sys

from sftkit.api import Plugin, dataclass, hookimpl


@dataclass(frozen=True, kw_only=True)
class Fault(Plugin):
    """Causes a fault inside a save."""

    what: str
    at: int = 1
    step: int = 8

    @hookimpl
    def trainer_callbacks(self, run):
        counted = iter(range(1, 10**6))
        inside = f"_partial{os.sep}checkpoint-{self.step}"

        def audit(event, arguments):
            if inside in str(arguments[:2]) and next(counted) == self.at:
                globals()[self.what]()

        if self.what == "no_space":
            no_space()
        else:
            sys.addaudithook(audit)
        return []


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def limit():
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))


def fill():
    with open("disk/filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def no_space():
    usage = collections.namedtuple("usage", "total used free")
    shutil.disk_usage = lambda path: usage(10**9, 10**9, 200_000)
'''
DETAILS = {"step": 8, "world_size": 1, "resumable": True}


@pytest.fixture
def fault(tmp_path):
    """The option that selects the plugin with a fault."""
    (tmp_path / "faulty.py").write_text(PLUGIN)

    def options(what: str, at: int = 1) -> list[str]:
        return ["-p", f"faulty:Fault:what={what},at={at}"]

    return options


@pytest.fixture
def complete(tmp_path):
    """A run with two complete checkpoints of small files."""
    for step in (4, 8):
        path = tmp_path / "run" / f"checkpoint-{step}"
        path.mkdir(parents=True)
        for name in ("model.safetensors", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"):
            (path / name).write_bytes(name.encode() * 20)
        checkpoints.write(path, {**DETAILS, "step": step})
    return tmp_path / "run"


def losses(run: Path) -> dict[int, float]:
    """The loss of each step; of a step that was repeated, the later one."""
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return {entry["step"]: entry["loss"] for entry in entries if "loss" in entry}


def flip(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def test_01_a_run_killed_between_saves_continues_with_the_same_losses(start, configure, tmp_path):
    train = {"gradient_accumulation_steps": 2, "num_train_epochs": 3, "max_steps": -1}
    config = configure(train=train, plugins={"neftune": {}})
    assert start("run", config, "-o", "whole").wait() == 0
    killed = start("run", config, "-o", "killed")
    killed.wait_until((tmp_path / "killed" / "checkpoint-4").exists)
    killed.send(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    resumed = start("run", config, "-o", "killed", "--resume")
    assert resumed.wait() == 0, resumed.output
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


@pytest.mark.parametrize(
    "at", [3, 14, *(pytest.param(at, marks=pytest.mark.slow) for at in (*range(1, 40), *range(40, 80, 5)))]
)
def test_02_a_run_killed_inside_a_save_keeps_the_last_complete_checkpoint(start, configure, tmp_path, fault, at):
    config = configure()
    killed = start("run", config, "-o", "run", *fault("kill", at))
    if killed.wait() == 0:
        pytest.skip("a save has fewer moments")
    assert killed.wait() == -signal.SIGKILL, killed.output
    choice = newest(tmp_path / "run")
    assert choice.path is not None
    assert choice.path.name in ("checkpoint-4", "checkpoint-8")
    assert not choice.rejected  # a half-written one has no name that a resume would look at
    assert (tmp_path / "run" / "_partial").is_dir()
    resumed = start("run", config, "-o", "run", "--resume", *fault("nothing", 10**6))
    assert resumed.wait() == 0, resumed.output
    assert f"resuming from run/{choice.path.name}" in resumed.output
    assert not (tmp_path / "run" / "_partial").exists()
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} == {"checkpoint-8", "checkpoint-12"}
    assert list(losses(tmp_path / "run")) == list(range(1, 13))
