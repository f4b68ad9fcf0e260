"""Optimizers of plugins with several processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sftkit.testing import tiny_model, tiny_tokenizer
from sftkit.testing.processes import start_group, warm_processes

pytestmark = pytest.mark.slow
COMMON = ["-m", "model", "-d", "rows.jsonl", "train.use_cpu=true", "train.learning_rate=0.01", "train.logging_steps=1"]
COMMON += ["train.lr_scheduler_type=constant", "train.save_strategy=steps", "train.save_steps=2"]
GROUPS = "optimizer:layer_decay=0.5,groups={lm_head: {learning_rate: 0.003, weight_decay: 0.1}}"
CHOSEN = {"optimizer": GROUPS, "muon": "muon", "schedule_free": "schedule_free"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Runs sftkit in several processes; returns the run directory."""
    place, context = tmp_path_factory.mktemp("optimizers"), warm_processes()
    tiny_model().save_pretrained(place / "model")
    tiny_tokenizer().save_pretrained(place / "model")
    rows = [{"prompt": f"What is {n}?", "completion": f" {n} is {'one more ' * (n % 4)}"} for n in range(32)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def start(name, processes, *options, steps=4, rows=0):
        size = [f"train.per_device_train_batch_size={rows or 8 // processes}", f"train.max_steps={steps}"]
        arguments = ["run", *COMMON, *options, *size, "--output", name]
        printed = place / f"{name}-{steps}-printed"
        with start_group(context, arguments, processes, cwd=place, printed=printed) as group:
            assert group.wait() == [0] * processes, "\n".join(group.outputs)
        return place / name

    return start


def require_equal(one: Path, other: Path, **tolerance: float) -> None:
    expected, found = (load_file(run / "model.safetensors") for run in (one, other))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name, **tolerance)


@pytest.mark.parametrize("name", CHOSEN)
def test_two_processes_train_as_one_does(run, name):
    alone, two = run(f"{name}-one", 1, "-p", CHOSEN[name]), run(f"{name}-two", 2, "-p", CHOSEN[name])
    # Muon computes in bfloat16, so that a difference in the last bit of a gradient is one in the third digit.
    require_equal(alone, two, **({"rtol": 0.02, "atol": 2e-3} if name == "muon" else {"rtol": 1e-4, "atol": 1e-5}))


def test_groups_are_trained_in_shards_as_in_one_process_and_continue_exactly(run):
    alone = run("groups-one", 1, "-p", GROUPS)
    sharded = run("groups", 2, "-p", GROUPS, "-p", "fsdp")
    require_equal(alone, sharded, rtol=1e-4, atol=1e-5)
    run("groups-half", 2, "-p", GROUPS, "-p", "fsdp", steps=2)
    require_equal(sharded, run("groups-half", 2, "-p", GROUPS, "-p", "fsdp", "--resume"), rtol=0, atol=0)


def test_groups_are_trained_with_tensor_parallelism_as_in_one_process(run):
    alone = run("groups-alone", 1, "-p", GROUPS)
    divided = run("groups-parallel", 2, "-p", GROUPS, "-p", "tensor_parallel:size=2", rows=8)
    require_equal(alone, divided, rtol=1e-4, atol=1e-5)
