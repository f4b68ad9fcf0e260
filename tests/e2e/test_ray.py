"""Runs on a real Ray cluster of two nodes, each with one processor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import BrokenExecutor
from pathlib import Path

import pytest

from sftkit.errors import DataError, Problem
from sftkit.testing import tiny_conversations, tiny_model, tiny_tokenizer

pytest.importorskip("ray")
pytestmark = pytest.mark.slow

#: A plugin by which the second worker kills itself after the fifth step, unless a file says that it has done so.
KILLER = """
import os
import signal
from pathlib import Path

from sftkit import Plugin, dataclass, hookimpl
from transformers import TrainerCallback


class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 5 and args.process_index == 1:
            mark = Path(args.output_dir).parent / f"killed-{Path(args.output_dir).name}"
            if "spared" not in mark.name and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True, kw_only=True)
class Killer(Plugin):
    '''Kills the second worker.'''

    @hookimpl
    def trainer_callbacks(self, config):
        return [Kill()]
"""
CONFIG = """
model: model
data:
  train: train.jsonl
  eval: held_out.jsonl
plugins:
  killer:Killer: {}
train:
  use_cpu: true
  max_steps: 8
  save_steps: 2
  logging_steps: 1
  eval_strategy: "no"
  report_to: none
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a model, data and a configuration."""
    from sftkit.testing import CHATML

    directory = tmp_path_factory.mktemp("ray")
    for part in (tiny_model(), tiny_tokenizer(chat_template=CHATML)):
        part.save_pretrained(directory / "model")
    for name, rows in {"train": tiny_conversations(64), "held_out": tiny_conversations(6, first=90)}.items():
        (directory / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (directory / "killer.py").write_text(KILLER)
    (directory / "sft.yaml").write_text(CONFIG)
    return directory


@pytest.fixture(scope="module")
def address():
    """Of a cluster of two nodes."""
    from ray.cluster_utils import Cluster

    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("RAY_worker_niceness", "0")
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    yield cluster.address
    cluster.shutdown()
    monkeypatch.undo()


@pytest.fixture(scope="module")
def launch(place, address):
    """Launches a run with a worker on each node; returns the process."""

    def start(*arguments, options=""):
        target = ["--on", f"ray:address={address}{options}", "--nnodes", "2"]
        command = [sys.executable, "-m", "sftkit", "launch", *target, "run", "sft.yaml", *arguments]
        return subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


@pytest.fixture(scope="module")
def spared(launch, place):
    """An undisturbed run on the cluster, and what it printed."""
    process = launch("-o", "spared", "train.per_device_train_batch_size=2")
    printed = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    return place / "spared", *printed


def manifest(directory: Path) -> dict:
    return json.loads((directory / "manifest.json").read_text())


def test_two_workers_on_two_nodes_equal_one_process(spared, place):
    directory, out, _ = spared
    alone = [sys.executable, "-m", "sftkit", "run", "sft.yaml", "-o", "spared-alone"]
    subprocess.run([*alone, "train.per_device_train_batch_size=4"], cwd=place, check=True, timeout=300)
    found, expected = manifest(directory), manifest(place / "spared-alone")
    assert found["parts"][-1]["world_size"] == 2
    assert found["metrics"] == pytest.approx(expected["metrics"], rel=1e-5)
    assert {"eval_loss", "train_loss"} <= found["metrics"].keys()
    assert found["data"] == expected["data"]
    assert found.keys() == expected.keys()
    assert f"saved to {directory}" in out


def test_every_checkpoint_and_the_end_are_reported_to_ray(spared):
    directory, _, err = spared
    [experiment] = (directory.parent / ".ray").glob("spared-2*")
    pointers = [json.loads(path.read_text())["path"] for path in sorted(experiment.glob("*/checkpoint.json"))]
    assert pointers == [*(str(directory / f"checkpoint-{step}") for step in (2, 4, 6, 8)), str(directory)]
    results = json.loads((experiment / "checkpoint_manager_snapshot.json").read_text())["checkpoint_results"]
    assert results[-1]["metrics"] == manifest(directory)["metrics"]
    assert "ray" not in err.lower()


def test_a_killed_worker_leads_to_a_restart_that_ends_with_the_same_weights(spared, launch, place):
    process = launch("-o", "killed", "train.per_device_train_batch_size=2")
    printed = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    assert (place / "killed-killed").exists()
    assert "the run continues (restart 1 of 3)" in printed[1]
    assert f"resuming from {place / 'killed' / 'checkpoint-4'}" in printed[1]
    first, last = manifest(place / "killed")["parts"]
    assert first["status"] in ("failed", "interrupted")  # by the other worker, unless it was stopped before it noticed
    assert (last["status"], last["from_step"], last["to_step"]) == ("done", 4, 8)
    found, expected = ((path / "model.safetensors").read_bytes() for path in (place / "killed", spared[0]))
    assert found == expected


def test_an_error_of_the_configuration_in_a_worker_is_shown_once_and_ends_the_launch(launch, place):
    process = launch("-o", "misspelt", "train.max_stps=3")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 2
    assert err.count("max_stps") == 1
    assert "error: command line: unknown field 'max_stps'" in err or "max_steps" in err
    assert "Traceback" not in out + err
    assert "restart" not in err


def test_ctrl_c_saves_the_run_and_shows_how_it_continues(launch, place):
    process = launch("-o", "spared-stopped", "train.max_steps=100000")
    deadline = time.monotonic() + 300
    while not (place / "spared-stopped" / "checkpoint-2").is_dir():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert manifest(place / "spared-stopped")["status"] == "interrupted"
    assert "is saved" in err
    assert "--resume" in err
    step = manifest(place / "spared-stopped")["parts"][-1]["to_step"]
    assert (place / "spared-stopped" / f"checkpoint-{step}").is_dir()


def test_a_launch_that_is_too_large_for_the_cluster_ends_with_the_reason(launch):
    process = launch("-o", "large", options=",cpus=2,wait=8")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 2, err
    assert "waiting for the cluster: it has 2 CPUs of 4" in err
    assert "error: sftkit launch --on ray: the workers did not start on the cluster: it has 2 CPUs of 4" in err


def test_calls_of_an_executor_are_tasks_and_raise_their_errors(address):
    import ray

    from sftkit_commands.launch.ray_tasks import RayExecutor

    def square(number):
        if number < 0:
            raise DataError(Problem(f"{number} is negative", "the test"))
        return number * number

    ray.init(address=address, log_to_driver=False)
    try:
        executor = RayExecutor(retries=0)
        assert list(executor.map(square, range(4))) == [0, 1, 4, 9]
        with pytest.raises(DataError, match="-1 is negative"):
            executor.submit(square, -1).result()
        broken = executor.submit(os._exit, 1)
        with pytest.raises(BrokenExecutor):
            broken.result()
    finally:
        ray.shutdown()
