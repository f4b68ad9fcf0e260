"""A script of TRL's page in two processes, launched as the page says, against one process on the same global batch."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys

import pytest

#: The quick start with what the page adds for several processes. Dropout is off because each process draws its own.
SCRIPT = """
import json
import os
import sys

from datasets import load_dataset
from sftkit_trl import SFTConfig, SFTTrainer

name, batch = sys.argv[1], int(sys.argv[2])
dataset = load_dataset("stanfordnlp/imdb", split="train")

sft_config = SFTConfig(
    dataset_text_field="text",
    per_device_train_batch_size=batch,
    max_seq_length=512,
    gradient_checkpointing=True,
    gradient_checkpointing_kwargs={"use_reentrant": False},
    model_init_kwargs={"dropout": 0.0},
    logging_steps=1,
    learning_rate=1e-2,
    use_cpu=True,
    output_dir=name,
)
trainer = SFTTrainer(
    "facebook/opt-350m",
    train_dataset=dataset,
    args=sft_config,
)
trainer.train()
trainer.save_model()

if trainer.is_world_process_zero():
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    with open(f"{name}.json", "w") as file:
        json.dump({"processes": trainer.args.world_size, "losses": losses}, file)
if trainer.args.world_size > 1:
    import torch.distributed as dist

    dist.barrier()
    os._exit(0)  # at the interpreter's normal exit, gloo's threads may release tensors after Python is gone
"""

#: With --cpu, accelerate can start several processes only through MPI; --multi_gpu works as torchrun.
LAUNCH = {
    "accelerate": [
        *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
    ],
    "torchrun": [
        *("-m", "torch.distributed.run", "--nproc_per_node", "2"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"),
    ],
}


def launch(workplace, name, launcher, batch):
    """Run the script in processes of its own."""
    (workplace / "script.py").write_text(SCRIPT)
    command = [sys.executable, *launcher, "script.py", name, str(batch)]
    variables = {**os.environ, "HF_DATASETS_CACHE": str(workplace / "cache" / name)}
    done = subprocess.run(command, cwd=workplace, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def result(workplace, name):
    """What the script reported, and the weights it saved."""
    from safetensors.torch import load_file

    return json.loads((workplace / f"{name}.json").read_text()), load_file(workplace / name / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_two_processes_equal_one_on_the_same_global_batch(workplace, launcher, monkeypatch):
    launch(workplace, "two", LAUNCH[launcher], 2)
    monkeypatch.setattr(sys, "argv", ["script.py", "one", "4"])
    runpy.run_path(str(workplace / "script.py"), run_name="__main__")
    two, weights_of_two = result(workplace, "two")
    one, weights_of_one = result(workplace, "one")
    assert (one["processes"], two["processes"]) == (1, 2)
    assert len(one["losses"]) == 12
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    for name, value in weights_of_one.items():
        assert weights_of_two[name].allclose(value, rtol=1e-3, atol=1e-4), name
