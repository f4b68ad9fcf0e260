"""A batch script for Slurm, run with stand-ins for Slurm's programs that really start its nodes on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import psutil
import pytest

pytestmark = pytest.mark.slow


def test_a_job_saves_at_the_signal_is_requeued_and_resumes(slurm, launch, tmp_path):
    """Two nodes of one process each: the second start ends the run that the first one began."""
    run = ["run", "-p", "no:samples", "train.max_steps=200", "train.eval_strategy=no", "train.save_strategy=no"]
    options = "slurm:gpus-per-node=0,grace=60"
    code, printed = launch("--on", options, "--nnodes", "2", "--nproc", "1", "--name", "demo", *run)
    assert code == 0, printed
    output = tmp_path / "runs" / "demo"
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost,localhost", "SLURM_NNODES": "2"}

    def start(attempt: int) -> subprocess.Popen[bytes]:
        variables = {**os.environ, **job, "OMP_NUM_THREADS": "1", "SLURM_RESTART_COUNT": str(attempt)}
        with (tmp_path / "log").open("ab") as log:
            return subprocess.Popen(["bash", "demo.sbatch"], cwd=tmp_path, env=variables, stdout=log, stderr=log)

    first = start(0)
    logged = output / "log.jsonl"
    deadline = time.monotonic() + 240
    while not (logged.is_file() and logged.stat().st_size):
        assert first.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.05)
    for task in (slurm / "tasks").read_text().split():
        agent = psutil.Process(int(task))
        for process in [agent, *agent.children(recursive=True)]:
            process.send_signal(signal.SIGTERM)
    assert first.wait(120) == 143, (tmp_path / "log").read_text()
    assert (slurm / "requeued").read_text() == "7\n"
    (checkpoint,) = output.glob("checkpoint-*")
    second = start(1)
    assert second.wait(240) == 0, (tmp_path / "log").read_text()
    assert (slurm / "requeued").read_text() == "7\n"
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["status"] == "done"
    assert [part["world_size"] for part in manifest["parts"]] == [2, 2]
    assert manifest["parts"][1]["from_step"] == int(checkpoint.name.removeprefix("checkpoint-"))
