"""The loss head where weights are sharded: the gradients of one process."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from sftkit.testing import tiny_model
from sftkit.training.head import LossHead
from sftkit.training.loss import HeadLoss
from sftkit.training.targets import Targets

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
mesh = torch.distributed.init_device_mesh("cpu", (world,))
torch.manual_seed(0)
ids = torch.randint(3, 300, (2 * world, 24))
labels = ids.clone()
labels[:, :9] = -100


def gradients(model, ids, labels):
    head = LossHead(model, HeadLoss())
    with head.installed():
        for _ in range(2):  # twice, as in accumulation
            total, _, _ = head.ask(model, {"input_ids": ids, "use_cache": False}, Targets.of(labels))
            total.backward()
    return {name: getattr(p.grad, "full_tensor", lambda p=p: p.grad)() for name, p in model.named_parameters()}


def check(architecture, head):
    own_head = head == "head"
    alone = tiny_model(architecture, tie_word_embeddings=not own_head)
    expected = gradients(alone, ids, labels)
    model = tiny_model(architecture, tie_word_embeddings=not own_head)
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    if own_head:
        fully_shard(model.lm_head, mesh=mesh)
    fully_shard(model, mesh=mesh)
    found = gradients(model, ids[rank::world], labels[rank::world])
    for name, value in expected.items():
        torch.testing.assert_close(found[name] * world, value, rtol=1e-4, atol=1e-5, msg=name)
    Path(f"equal-{architecture}-{head}-{rank}").touch()


for case in sys.argv[1:]:
    check(*case.split("-"))
dist.barrier()
os._exit(0)  # at the interpreter's own end, gloo's threads may let go of tensors when there is no Python any more
"""


CASES = ("llama-tied", "llama-head", "gemma2-tied")


@pytest.fixture(scope="module")
def equal(tmp_path_factory):
    """The files that two processes leave for each case with equal gradients; one start serves all."""
    place = tmp_path_factory.mktemp("sharded")
    (place / "sharded.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "sharded.py", *CASES]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=place)
    return {path.name for path in place.glob("equal-*")}, done


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_with_sharded_weights_get_the_gradients_of_one(equal, case):
    files, done = equal
    assert {f"equal-{case}-0", f"equal-{case}-1"} <= files, done.stderr[-3000:]
