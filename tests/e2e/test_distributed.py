"""Two processes equal one on the same global batch, in the step and in the evaluation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def metrics(directory: Path) -> dict[str, float]:
    return json.loads((directory / "manifest.json").read_text())["metrics"]


def in_two_processes(*options: str) -> list[str]:
    """A command that runs sftkit in two gloo processes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no-python"]
    program = str(Path(sys.executable).with_name("sftkit"))
    return [*torchrun, program, "run", *options, "train.use_cpu=true", "train.ddp_backend=gloo"]


@pytest.mark.parametrize("plugin", ["packing", pytest.param("flash_attn", marks=pytest.mark.slow)])
def test_two_gloo_processes_train_and_evaluate_as_one_does(tmp_path, plugin):
    program = str(Path(sys.executable).with_name("sftkit"))
    options = ["-p", plugin, "-p", "no:samples", "train.max_steps=3"]
    two = ["train.per_device_train_batch_size=4", "--output", str(tmp_path / "two")]
    one = ["train.use_cpu=true", "train.per_device_train_batch_size=8", "--output", str(tmp_path / "one")]
    subprocess.run(in_two_processes(*options, *two), check=True, cwd=tmp_path, timeout=300)
    subprocess.run([program, "run", *options, *one], check=True, cwd=tmp_path, timeout=300)
    for name, value in metrics(tmp_path / "one").items():
        assert metrics(tmp_path / "two")[name] == pytest.approx(value, rel=1e-5), name


def test_two_processes_train_on_a_stream_and_each_reads_its_half(tmp_path):
    from safetensors.torch import load_file

    lines = [json.dumps({"prompt": f"{number} is ", "completion": f"number {number}"}) for number in range(16)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    stream = ["data.train=rows.jsonl", "data.streaming=true", "data.window=4", "--model", "demo"]
    options = [*stream, "model.init=random", "train.max_steps=2", "train.eval_strategy=no"]
    for name in ("first", "second"):
        command = in_two_processes(*options, "train.per_device_train_batch_size=4", "--output", name)
        subprocess.run(command, check=True, cwd=tmp_path, timeout=300)
    counts = json.loads((tmp_path / "first" / "manifest.json").read_text())["data"]["train"]
    passes = 1 + sum(count for what, count in counts.items() if "began again" in what)
    assert counts["rows read"] == 8 * passes  # the main process reads each second one of 16
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert all(first[name].equal(second[name]) for name in first)


def test_processes_without_images_do_not_block_others(tmp_path):
    from vision_models import drawn_image, tiny_vision_model

    for part in tiny_vision_model():
        part.save_pretrained(tmp_path / "model")
    drawn_image("red").save(tmp_path / "red.png")
    answer = {"role": "assistant", "content": "Red."}
    seen = {"image": "red.png", "messages": [{"role": "user", "content": "<image>What?"}, answer]}
    unseen = {"image": None, "messages": [{"role": "user", "content": "What?"}, answer]}
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, [seen, unseen] * 2)))
    options = ["-m", "model", "-d", "rows.jsonl", "-p", "vision", "train.max_steps=2"]
    options += ["train.gradient_checkpointing=true", "train.per_device_train_batch_size=1"]
    options += ["train.train_sampling_strategy=sequential", "train.save_strategy=no", "train.eval_strategy=no"]
    subprocess.run(in_two_processes(*options, "--output", "two"), check=True, cwd=tmp_path, timeout=120)
    one = ["train.use_cpu=true", "train.gradient_accumulation_steps=2", "--output", "one"]
    program = str(Path(sys.executable).with_name("sftkit"))
    subprocess.run([program, "run", *options, *one], check=True, cwd=tmp_path, timeout=120)
    losses = [metrics(tmp_path / name)["train_loss"] for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("packing", [["-p", "packing"], []])
def test_two_processes_share_the_sum_of_the_weights(tmp_path, packing):
    """Rows weigh 2 or 0.5, and are of several lengths: the mean of each process's own mean would be another."""
    rows = [
        {"prompt": f"{n} is ", "completion": f"number {n} " * (1 + n % 5), "weight": [2, 0.5][n % 2]} for n in range(64)
    ]
    held_out = [{**row, "prompt": f"not {row['prompt']}"} for row in rows]
    for name, content in (("rows.jsonl", rows), ("held_out.jsonl", held_out)):
        (tmp_path / name).write_text("\n".join(map(json.dumps, content)))
    program = str(Path(sys.executable).with_name("sftkit"))
    options = ["--data", "rows.jsonl", "--model", "demo", "model.init=random", "train.max_steps=2", *packing]
    options += ["data.eval=held_out.jsonl", "data.max_length=64"]
    two = ["train.per_device_train_batch_size=2", "--output", "two"]
    one = ["train.use_cpu=true", "train.per_device_train_batch_size=4", "--output", "one"]
    subprocess.run(in_two_processes(*options, *two), check=True, cwd=tmp_path, timeout=600)
    subprocess.run([program, "run", *options, *one], check=True, cwd=tmp_path, timeout=600)
    found = metrics(tmp_path / "one")
    assert {"train_loss", "eval_loss"} <= found.keys()
    for name, value in found.items():
        assert metrics(tmp_path / "two")[name] == pytest.approx(value, rel=1e-5), name
