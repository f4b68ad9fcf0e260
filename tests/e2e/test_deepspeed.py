"""Weights that DeepSpeed partitions (ZeRO-3) are there where the loss head needs them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, os, sys

from sftkit import Pipeline
from sftkit.testing import tiny_model, tiny_tokenizer

stage, architecture = int(sys.argv[1]), sys.argv[2]
data = [{"prompt": "### Question: ", "completion": "Paris is the capital of France. " * (1 + n % 4)} for n in range(8)]
train = {"max_steps": 3, "learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no", "output_dir": sys.argv[3]}
if stage:
    optimizer = {"type": "AdamW", "params": {"lr": 1e-2, "torch_adam": True, "weight_decay": 0.0}}
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
    config = {"zero_optimization": zero, "train_micro_batch_size_per_gpu": 4, "optimizer": optimizer}
    train |= {"deepspeed": {**config, "zero_force_ds_cpu_optimizer": False}, "per_device_train_batch_size": 4}
else:
    train |= {"per_device_train_batch_size": 8}
train |= {"use_cpu": True, "lr_scheduler_type": "constant", "weight_decay": 0.0, "max_grad_norm": 0.0}
Pipeline(model=tiny_model(architecture), data=data, tokenizer=tiny_tokenizer(), train=train).run()
"""


def losses(directory):
    lines = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_two_processes_with_partitioned_weights_have_the_losses_of_one(tmp_path, architecture):
    script = tmp_path / "partitioned.py"
    script.write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv-backend", "c10d"]
    launch += ["--rdzv-endpoint", "localhost:0"]
    variables = {**os.environ, "DS_ACCELERATOR": "cpu"}
    for command, stage, name in (([sys.executable], 0, "one"), (launch, 3, "three")):
        done = subprocess.run(
            [*command, str(script), str(stage), architecture, str(tmp_path / name)],
            env=variables,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert losses(tmp_path / "three") == pytest.approx(losses(tmp_path / "one"), rel=2e-3)
