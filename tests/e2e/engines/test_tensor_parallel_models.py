"""The gradients of divided models equal those of whole ones, through the loss head and through the model's own loss."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version

import pytest

SCRIPT = """
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.distributed.device_mesh import init_device_mesh

from sftkit.testing import tiny_model
from sftkit.training.head import LossHead
from sftkit.training.loss import HeadLoss
from sftkit.training.targets import Targets
from sftkit_plugins.tensor_parallel.shard import settle_gradients, shard

dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("parts",))
torch.manual_seed(0)
ids = torch.randint(3, 300, (2, 24))
labels = torch.where(torch.arange(24) < 9, -100, ids)
weights = torch.rand(ids.shape)


def gradients(model):
    head = LossHead(model, HeadLoss())
    with head.installed():
        for _ in range(2):  # twice, as in accumulation
            total, _, _ = head.ask(model, {"input_ids": ids, "use_cache": False}, Targets.of(labels, weights))
            total.backward()
    assert not head.full_logits
    model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad} | {"norm": norm}
    return {name: getattr(value, "full_tensor", lambda value=value: value)() for name, value in found.items()}


def make(case):
    torch.manual_seed(1)
    options = dict(case)
    adapter = options.pop("adapter", False)
    model = tiny_model(options.pop("type"), **options).eval()
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    return get_peft_model(model, lora).eval() if adapter else model


for number, case in enumerate(json.loads(sys.argv[1])):
    expected = gradients(make(case))
    model = make(case)
    shard(model, mesh)
    settle_gradients(model, mesh)
    found = gradients(model)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=f"{case} {name}")
    Path(f"equal-{number}-{dist.get_rank()}").touch()
dist.barrier()
os._exit(0)  # at the interpreter's own end, gloo's threads may let go of tensors when there is no Python any more
"""

pytestmark = pytest.mark.skipif(tuple(map(int, version("torch").split(".")[:2])) < (2, 11), reason="needs torch 2.11")
TYPES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "phi", "olmo2", "cohere", "gpt_neox", "starcoder2")
CASES = [{"type": name} for name in TYPES]
CASES += [{"type": "llama", "tie_word_embeddings": True}, {"type": "llama", "vocab_size": 321}]
CASES += [{"type": name, "adapter": True} for name in ("llama", "qwen3", "phi3")]


@pytest.fixture(scope="module")
def equal(tmp_path_factory):
    """The files that two processes leave for each case with equal gradients; one start serves all."""
    place = tmp_path_factory.mktemp("divided")
    (place / "divided.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["divided.py", json.dumps(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=place)
    return {path.name for path in place.glob("equal-*")}, done


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CASES)), ids=["-".join(map(str, case.values())) for case in CASES])
def test_two_processes_that_divide_a_model_get_the_gradients_of_one(equal, number):
    files, done = equal
    assert {f"equal-{number}-0", f"equal-{number}-1"} <= files, done.stderr[-3000:]
