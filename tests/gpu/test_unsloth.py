"""A run with the real unsloth on the device: it loads, trains, and saves an adapter that peft loads."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from sftkit.testing import CHATML, tiny_conversations, tiny_tokenizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(importlib.util.find_spec("unsloth") is None, reason="unsloth is not installed"),
]

#: A process of its own, since unsloth changes transformers for good.
PROGRAM = "from sftkit.cli import main; main()"


@pytest.mark.parametrize("options", ["r=8", "r=8,load_in_4bit=true"])
def test_a_run_trains_and_saves_an_adapter_that_peft_loads(build, device, tmp_path, options):
    if device.type == "cpu":
        pytest.skip("the plugin needs a GPU; tests/plugins/test_unsloth.py tries unsloth's own form for a CPU")
    if "4bit" in options:
        pytest.importorskip("bitsandbytes", reason="4 bits need bitsandbytes")
    build("llama", torch.bfloat16, initializer_range=0.02).cpu().save_pretrained(tmp_path / "model")
    tiny_tokenizer(chat_template=CHATML).save_pretrained(tmp_path / "model")
    lines = [json.dumps(row) + "\n" for row in tiny_conversations(24)]
    (tmp_path / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    arguments = ["run", "--model", "model", "--data", "rows.jsonl", "--output", "out", "-p", f"unsloth:{options}"]
    arguments += ["data.max_length=128", "train.max_steps=8", "train.learning_rate=1e-2", "train.logging_steps=1"]
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1"}

    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=300)

    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert len(losses) == 8
    assert losses[-1] < losses[0]
    assert_loads(tmp_path, device)


def assert_loads(directory, device):
    """The saved adapter fits on the base, and changes what it computes."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(directory / "model", dtype=torch.float32).to(device)
    ids = torch.arange(3, 27, device=device).view(2, 12)
    with torch.no_grad():
        before = base(input_ids=ids).logits
        after = PeftModel.from_pretrained(base, directory / "out").to(device)(input_ids=ids).logits
    assert bool(after.isfinite().all())
    assert float((after - before).abs().max()) > 0.01
