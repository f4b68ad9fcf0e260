"""Two processes equal one on the same global batch, in the step and in the evaluation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def metrics(directory: Path) -> dict[str, float]:
    return json.loads((directory / "manifest.json").read_text())["metrics"]


def test_two_gloo_processes_train_and_evaluate_as_one_does(tmp_path):
    program = str(Path(sys.executable).with_name("sftkit"))
    options = ["-p", "packing", "-p", "no:samples", "train.max_steps=3", "train.use_cpu=true"]
    two = ["train.ddp_backend=gloo", "train.per_device_train_batch_size=4", "--output", str(tmp_path / "two")]
    one = ["train.per_device_train_batch_size=8", "--output", str(tmp_path / "one")]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no-python"]
    subprocess.run([*torchrun, program, "run", *options, *two], check=True, cwd=tmp_path, timeout=300)
    subprocess.run([program, "run", *options, *one], check=True, cwd=tmp_path, timeout=300)
    for name, value in metrics(tmp_path / "one").items():
        assert metrics(tmp_path / "two")[name] == pytest.approx(value, rel=1e-5), name
