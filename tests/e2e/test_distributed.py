"""Two processes equal one on the same global batch, in the step and in the evaluation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

STREAM = ["data.train=rows.jsonl", "data.streaming=true", "data.window=4", "--model", "demo", "model.init=random"]
STREAM += ["train.max_steps=2", "train.eval_strategy=no", "train.per_device_train_batch_size=4"]
VISION = [
    "-m",
    "model",
    "-d",
    "images.jsonl",
    "-p",
    "vision",
    "train.max_steps=2",
    "train.per_device_train_batch_size=1",
]
VISION += ["train.gradient_checkpointing=true", "train.train_sampling_strategy=sequential"]
VISION += ["train.save_strategy=no", "train.eval_strategy=no"]


#: A metric that finds every row once, in order, and shows what each process wrote.
LETTERS = """
def letters(completions):
    assert [each.row for each in completions] == list(range(9))
    return {f"letters_{each.row}": len(each.text) for each in completions}
"""


def embedded(plugin: str) -> list[str]:
    completing = ["evaluate.metrics=[letters:letters]", "evaluate.rows=9", "evaluate.max_new_tokens=5"]
    return [
        "-p",
        plugin,
        "-p",
        "no:samples",
        "train.max_steps=3",
        *(completing if plugin == "packing" else ["evaluate=null"]),
    ]


def metrics(directory: Path) -> dict[str, float]:
    return json.loads((directory / "manifest.json").read_text())["metrics"]


def torchrun(*program: str) -> list[str]:
    """A command that starts a program in two processes."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *program]


def in_two_processes(*options: str) -> list[str]:
    """A command that runs sftkit in two gloo processes."""
    program = str(Path(sys.executable).with_name("sftkit"))
    return [*torchrun("--no-python", program), "run", *options, "train.use_cpu=true", "train.ddp_backend=gloo"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A directory with the runs of two processes."""
    from vision_models import drawn_image, tiny_vision_model

    from sftkit.testing.processes import start_group, warm_processes

    place = tmp_path_factory.mktemp("two")
    lines = [json.dumps({"prompt": f"{number} is ", "completion": f"number {number}"}) for number in range(16)]
    (place / "rows.jsonl").write_text("\n".join(lines))
    for part in tiny_vision_model():
        part.save_pretrained(place / "model")
    drawn_image("red").save(place / "red.png")
    answer = {"role": "assistant", "content": "Red."}
    seen = {"image": "red.png", "messages": [{"role": "user", "content": "<image>What?"}, answer]}
    unseen = {"image": None, "messages": [{"role": "user", "content": "What?"}, answer]}
    (place / "images.jsonl").write_text("\n".join(map(json.dumps, [seen, unseen] * 2)))
    (place / "letters.py").write_text(LETTERS)
    packed = [*embedded("packing"), "train.per_device_train_batch_size=4"]
    wanted = {"packing": packed, "first": STREAM, "second": STREAM, "vision": VISION}
    for name, options in wanted.items():
        arguments = ["run", *options, "train.use_cpu=true", "train.ddp_backend=gloo", "--output", name]
        group = start_group(warm_processes(), arguments, cwd=place, printed=place / f"printed-{name}")
        assert group.wait() == [0, 0], group.outputs
    return place


@pytest.fixture
def alone(runs, in_process, monkeypatch, tmp_path):
    """Runs sftkit in this process, beside the runs of two; returns the metrics."""

    def run(*options: str) -> dict[str, float]:
        monkeypatch.chdir(runs)
        code, output = in_process("run", *options, "train.use_cpu=true", "--output", tmp_path / "alone")
        assert code == 0, output
        return metrics(tmp_path / "alone")

    return run


def test_two_gloo_processes_train_and_evaluate_as_one_does(runs, alone):
    for name, value in alone(*embedded("packing"), "train.per_device_train_batch_size=8").items():
        assert metrics(runs / "packing")[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.slow
def test_two_processes_with_flash_attention_train_as_one_does(tmp_path, alone):
    two = [*embedded("flash_attn"), "train.per_device_train_batch_size=4", "--output", "two"]
    subprocess.run(in_two_processes(*two), check=True, cwd=tmp_path, timeout=300)
    for name, value in alone(*embedded("flash_attn"), "train.per_device_train_batch_size=8").items():
        assert metrics(tmp_path / "two")[name] == pytest.approx(value, rel=1e-5), name


def test_two_processes_train_on_a_stream_and_each_reads_its_half(runs):
    from safetensors.torch import load_file

    counts = json.loads((runs / "first" / "manifest.json").read_text())["data"]["train"]
    passes = 1 + sum(count for what, count in counts.items() if "began again" in what)
    assert counts["rows read"] == 8 * passes  # the main process reads each second one of 16
    first, second = (load_file(runs / name / "model.safetensors") for name in ("first", "second"))
    assert all(first[name].equal(second[name]) for name in first)


def test_processes_without_images_do_not_block_others(runs, alone):
    losses = [metrics(runs / "vision")["train_loss"]]
    losses.append(alone(*VISION, "train.gradient_accumulation_steps=2")["train_loss"])
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
