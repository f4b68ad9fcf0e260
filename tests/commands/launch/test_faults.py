"""Real runs in two processes on this machine: a worker is killed, and the launch itself gets a signal."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

STEPS = 100
RUN = ["run", "-p", "no:samples", "train.eval_strategy=no", f"train.max_steps={STEPS}", "train.use_cpu=true"]
RUN += ["train.save_strategy=steps", "train.save_steps=10", "train.save_total_limit=9"]


class Launched:
    """A launch of two processes in a directory, with what it prints in a file."""

    def __init__(self, directory: Path, *words: str) -> None:
        self.directory, self.printed = directory, directory / f"{time.monotonic_ns()}.txt"
        variables = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self.printed.open("w") as file:
            command = [sys.executable, "-m", "sftkit", *words]
            self.process = psutil.Popen(command, cwd=directory, env=variables, stdout=file, stderr=file)

    @property
    def output(self) -> str:
        return self.printed.read_text()

    def worker(self, rank: int) -> psutil.Process:
        """The process with this number."""
        found = [child for child in self.process.children() if child.environ().get("RANK") == str(rank)]
        return found[0]

    def wait_for(self, name: str) -> None:
        """Wait until there is a file or directory of this name."""
        until = time.monotonic() + 300
        while not (self.directory / name).exists():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < until, self.output
            time.sleep(0.02)

    def wait(self) -> int:
        try:
            return self.process.wait(300)
        except psutil.TimeoutExpired:
            raise AssertionError(f"the launch hangs\n{self.output}") from None

    def end(self) -> None:
        """Kill what still runs."""
        if self.process.poll() is None:
            for process in [*self.process.children(recursive=True), self.process]:
                process.kill()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("launched")


@pytest.fixture(scope="module")
def launch(place):
    """Starts the command with these arguments; what still runs at the end is killed."""
    begun = []

    def start(*words: str) -> Launched:
        begun.append(Launched(place, *words))
        return begun[-1]

    yield start
    for each in begun:
        each.end()


@pytest.fixture(scope="module")
def weights(place, launch):
    """Whether the weights of a run equal those of an undisturbed one."""
    undisturbed = launch("launch", "--nproc", "2", *RUN, "-o", "undisturbed")
    assert undisturbed.wait() == 0, undisturbed.output
    expected = load_file(place / "undisturbed" / "model.safetensors")

    def equal(output: str) -> bool:
        found = load_file(place / output / "model.safetensors")
        return found.keys() == expected.keys() and all(found[name].equal(expected[name]) for name in expected)

    return equal


def parts(directory: Path) -> list[dict]:
    return json.loads((directory / "manifest.json").read_text())["parts"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_worker_leads_to_a_restart_that_ends_with_the_same_weights(launch, place, weights, rank):
    output = f"killed-{rank}"
    run = launch("launch", "--nproc", "2", "--max-restarts", "1", *RUN, "-o", output)
    run.wait_for(f"{output}/checkpoint-20")
    run.worker(rank).kill()
    assert run.wait() == 0, run.output
    assert f"resuming from {output}/checkpoint-" in run.output
    first, last = parts(place / output)
    assert first["status"] in ("failed", "interrupted")  # by the other worker, unless it was stopped before it noticed
    assert last["status"] == "done"
    assert 20 <= last["from_step"] < last["to_step"] == STEPS
    assert weights(output)


def test_a_signal_to_the_launch_saves_once_and_the_printed_command_continues(launch, place, weights):
    run = launch("launch", "--nproc", "2", *RUN, "train.save_steps=1000", "-o", "stopped")
    run.wait_for("stopped/log.jsonl")
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 143, run.output
    [saved] = (place / "stopped").glob("checkpoint-*")
    assert run.output.count(f"{saved.name} is saved") == 1
    [line] = [line for line in run.output.splitlines() if "continue with: " in line]
    name, *words = shlex.split(line.partition("continue with: ")[2])
    assert (name, words[:3], words[-1]) == ("sftkit", ["launch", "--nproc", "2"], "--resume")
    resumed = launch(*words)
    assert resumed.wait() == 0, resumed.output
    assert [(part["status"], part["to_step"]) for part in parts(place / "stopped")][1:] == [("done", STEPS)]
    assert weights("stopped")
