"""Rows 2 to 6 of the table of faults: checkpoints that were interrupted, damaged or left incomplete."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from sftkit import checkpoints
from sftkit.checkpoints import newest
from sftkit.checkpoints.publish import rotate

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
    def trainer_callbacks(self, config):
        counted = iter(range(1, 10**6))
        inside = f"_partial{os.sep}checkpoint-{self.step}"

        def audit(event, arguments):
            if inside in str(arguments[:2]) and next(counted) == self.at and not os.path.exists("caused"):
                open("caused", "w").close()
                globals()[self.what]()

        if self.what == "no_space":
            usage = collections.namedtuple("usage", "total used free")
            shutil.disk_usage = lambda path: usage(10**9, 10**9, 200_000)
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

'''
#: A plugin that fills the disk to its last byte before a step, once.
FULL = '''
import os

from transformers import TrainerCallback

from sftkit.api import Plugin, dataclass, hookimpl


@dataclass(frozen=True, kw_only=True)
class Full(Plugin):
    """Fills the disk."""

    @hookimpl
    def trainer_callbacks(self, config):
        return [Filling()]


class Filling(TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        if state.global_step != 5 or os.path.exists("caused"):
            return
        open("caused", "w").close()
        for path, block in (("disk/filler", 4096), ("disk/run/log.jsonl", 1)):
            with open(path, "ab", buffering=0) as file:
                try:
                    while True:
                        file.write(b"\\n" * block)
                except OSError:
                    pass
'''
DETAILS = {"step": 8, "world_size": 1, "ranks": [0], "resumable": True}


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


@pytest.mark.parametrize(
    "at", [14, *(pytest.param(at, marks=pytest.mark.slow) for at in (*range(1, 40), *range(40, 80, 5)))]
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
    resumed = start("run", config, "-o", "run", "--resume", *fault("kill", at))
    assert resumed.wait() == 0, resumed.output
    assert f"resuming from run/{choice.path.name}" in resumed.output
    assert not (tmp_path / "run" / "_partial").exists()
    assert {path.name for path in (tmp_path / "run").glob("checkpoint-*")} == {"checkpoint-8", "checkpoint-12"}
    assert list(losses(tmp_path / "run")) == list(range(1, 13))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: flip(path / "model.safetensors"), "model.safetensors is damaged"),
        (lambda path: flip(path / "optimizer.pt"), "optimizer.pt is damaged"),
        (lambda path: truncate(path / "model.safetensors"), "model.safetensors has 170 bytes instead of 340"),
        (lambda path: flip(path / "checkpoint.json"), "checkpoint.json is damaged"),
        (lambda path: truncate(path / "checkpoint.json"), "checkpoint.json is damaged"),
        (lambda path: (path / "checkpoint.json").write_text("[]"), "checkpoint.json is damaged"),
        (lambda path: (path / "checkpoint.json").unlink(), "checkpoint.json is missing"),
        (lambda path: (path / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda path: (path / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda path: (path / "scheduler.pt").unlink(), "scheduler.pt is missing"),
        (lambda path: (path / "rng_state.pth").unlink(), "rng_state.pth is missing"),
        (lambda path: (path / "trainer_state.json").unlink(), "trainer_state.json is missing"),
        (lambda path: checkpoints.write(path, DETAILS | {"resumable": False}), "train.save_only_model"),
        (
            lambda path: checkpoints.write(path, DETAILS | {"world_size": 2, "ranks": [0, 1]}),
            "rng_state_0.pth is missing",
        ),
        (lambda path: [(path / "optimizer.pt").unlink(), checkpoints.write(path, DETAILS)], "the optimizer state is"),
        (lambda path: path.rename(path.with_name("checkpoint-9")), "checkpoint.json is of step 8"),
    ],
)
def test_04_05_a_damaged_or_incomplete_checkpoint_is_named_and_the_older_one_taken(complete, damage, reason):
    assert newest(complete).path == complete / "checkpoint-8"
    damage(complete / "checkpoint-8")
    (complete / "checkpoint-999").mkdir()
    choice = newest(complete)
    assert choice.path == complete / "checkpoint-4"
    assert choice.manifest["step"] == 4
    empty, damaged = choice.rejected
    assert empty == (complete / "checkpoint-999", "it is empty")
    assert reason in damaged[1]


def test_a_directory_that_is_no_checkpoint_is_neither_counted_nor_removed(complete):
    (complete / "checkpoint-50").mkdir()
    (complete / "checkpoint-50" / "score.txt").write_text("0.9")
    (complete / "checkpoint-60").mkdir()
    (complete / "checkpoint-60" / "trainer_state.json").write_text("{}")
    rotate(complete, 2, complete / "checkpoint-8", None)
    assert {path.name for path in complete.iterdir()} == {"checkpoint-4", "checkpoint-8", "checkpoint-50"}


def as_if_killed(run):
    """Lets a finished run look as if it had been killed after its last checkpoint."""
    path = run / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "running"}))


def test_04_05_resuming_warns_once_of_each_checkpoint_and_continues_bitwise(start, configure, tmp_path):
    config = configure()
    assert start("run", config, "-o", "run").wait() == 0
    whole = losses(tmp_path / "run")
    saved = (tmp_path / "run" / "model.safetensors").read_bytes()
    flip(tmp_path / "run" / "checkpoint-12" / "model.safetensors")
    (tmp_path / "run" / "checkpoint-999").mkdir()
    as_if_killed(tmp_path / "run")
    resumed = start("run", config, "-o", "run", "--resume")
    assert resumed.wait() == 0, resumed.output
    assert resumed.output.count("is not used") == 2
    assert "run/checkpoint-999 is not used: it is empty" in resumed.output
    assert "run/checkpoint-12 is not used: model.safetensors is damaged" in resumed.output
    assert "resuming from run/checkpoint-8" in resumed.output
    assert whole.keys() == set(range(1, 13))
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == saved
    assert newest(tmp_path / "run").path == tmp_path / "run" / "checkpoint-12"  # it was replaced

    for path in (tmp_path / "run").glob("checkpoint-*"):
        (path / "optimizer.pt").unlink(missing_ok=True)  # checkpoint-999 is still there, and empty
    config.write_text(config.read_text().replace("max_steps: 12", "max_steps: 14"))
    refused = start("run", config, "-o", "run", "--resume")
    assert refused.wait() == 2
    assert "run/checkpoint-12: optimizer.pt is missing" in refused.output
    assert "the run has no checkpoint to resume from" in refused.output
    assert "Traceback" not in refused.output


def test_05_a_run_that_saves_only_models_says_that_it_cannot_be_resumed(start, configure, tmp_path):
    config = configure(train={"max_steps": 4, "save_only_model": True})
    command = start("run", config, "-o", "run")
    assert command.wait() == 0, command.output
    assert "this run cannot be resumed from its checkpoints" in command.output
    assert "train.save_only_model" in newest(tmp_path / "run").rejected[0][1]


class Executed:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_24_a_pickle_in_a_checkpoint_with_a_forged_manifest_is_not_executed(start, configure, tmp_path):
    config = configure(train={"max_steps": 4})
    assert start("run", config, "-o", "run").wait() == 0
    config.write_text(config.read_text().replace("max_steps: 4", "max_steps: 8"))
    path = tmp_path / "run" / "checkpoint-4"
    for name in ("optimizer.pt", "rng_state.pth"):
        original = (path / name).read_bytes()
        torch.save({"state": Executed(tmp_path / "executed")}, path / name)
        checkpoints.write(path, DETAILS | {"step": 4})
        resumed = start("run", config, "-o", "run", "--resume")
        assert resumed.wait() == 2
        assert f"checkpoint-4/{name}: the file contains pickled objects" in resumed.output
        assert "Traceback" not in resumed.output
        assert not (tmp_path / "executed").exists()
        (path / name).write_bytes(original)


def test_06_too_little_space_is_an_error_before_the_training(start, configure, tmp_path, fault):
    command = start("run", configure(), "-o", "run", "-p", "no:checks", *fault("no_space"))
    assert command.wait() == 2
    assert "error: run: the run needs " in command.output
    assert "of disk space, and 200 kB are free: 2 checkpoints of" in command.output
    assert "save_seconds" not in command.output


def test_06_a_save_that_cannot_be_written_leaves_the_older_checkpoint(start, configure, tmp_path, fault):
    config = configure()
    command = start("run", config, "-o", "run", *fault("limit"))
    assert command.wait() == 3
    assert "error: run/checkpoint-8: the checkpoint cannot be written" in command.output
    assert "Traceback" not in command.output
    assert not (tmp_path / "run" / "_partial").exists()
    assert newest(tmp_path / "run").path == tmp_path / "run" / "checkpoint-4"
    resumed = start("run", config, "-o", "run", "--resume", *fault("limit"))
    assert resumed.wait() == 0, resumed.output


@pytest.fixture
def disk(tmp_path):
    """A disk of a few megabytes."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(path)]
    if os.name == "nt" or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system can only be mounted by root")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.mark.parametrize("background", ["false", pytest.param("true", marks=pytest.mark.slow)])
def test_06_a_disk_that_fills_up_during_a_save_leaves_the_older_checkpoint(start, configure, disk, fault, background):
    options = [configure(), "-o", "disk/run", f"run.save_in_background={background}", *fault("fill")]
    command = start("run", *options)
    assert command.wait() == 3
    assert "error: disk/run/checkpoint-8: the checkpoint cannot be written" in command.output
    assert "Traceback" not in command.output
    assert not (disk / "run" / "_partial").exists()
    assert newest(disk / "run").path == disk / "run" / "checkpoint-4"
    full = start("run", *options, "--resume")
    assert full.wait() == 2, full.output
    (disk / "filler").unlink()
    resumed = start("run", *options, "--resume")
    assert resumed.wait() == 0, resumed.output


@pytest.mark.slow
def test_06_a_full_disk_that_stops_the_log_is_an_error(start, configure, disk, fault):
    (disk.parent / "full.py").write_text(FULL)
    options = [configure(), "-o", "disk/run", "-p", "full:Full"]
    command = start("run", *options)
    assert command.wait() == 3, command.output
    assert "error: disk/run: a file cannot be written: No space left on device" in command.output
    assert "Traceback" not in command.output
    (disk / "filler").unlink()
    resumed = start("run", *options, "--resume")
    assert resumed.wait() == 0, resumed.output


@pytest.mark.slow
def test_saving_in_the_background_gives_the_same_checkpoints(start, configure, tmp_path):
    config = configure()
    for name, background in (("front", "false"), ("back", "true")):
        command = start("run", config, "-o", name, f"run.save_in_background={background}")
        assert command.wait() == 0, command.output
        logged = (tmp_path / name / "log.jsonl").read_text(encoding="utf-8")
        assert ("save_background_seconds" in logged) == (background == "true")
    for file in ("model.safetensors", "checkpoint-12/model.safetensors", "checkpoint-12/optimizer.pt"):
        assert (tmp_path / "front" / file).read_bytes() == (tmp_path / "back" / file).read_bytes()
    manifest = json.loads((tmp_path / "back" / "manifest.json").read_text())
    assert manifest["saving"].keys() == {"saves", "total_save_seconds", "save_share"}
    shutil.rmtree(tmp_path / "back" / "checkpoint-12")
    as_if_killed(tmp_path / "back")
    resumed = start("run", config, "-o", "back", "run.save_in_background=true", "--resume")
    assert resumed.wait() == 0, resumed.output
    for file in ("model.safetensors", "checkpoint-12/optimizer.pt"):
        assert (tmp_path / "front" / file).read_bytes() == (tmp_path / "back" / file).read_bytes()
