"""Tensor parallelism, alone and beside data parallelism: runs of two and four gloo processes, against those of one."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sftkit.testing import CHATML, tiny_model, tiny_tokenizer
from sftkit.testing.processes import start_group, warm_processes

#: Two rows in each batch of a step of two, over all processes.
TRAIN = {"max_steps": 4, "learning_rate": 1e-2, "logging_steps": 1, "save_steps": 2, "use_cpu": True}
TRAIN |= {"gradient_accumulation_steps": 2, "eval_strategy": "steps", "eval_steps": 4, "per_device_eval_batch_size": 2}
SPEEDS = ("tokens_per_second", "memory", "seconds", "runtime", "per_second", "share", "flos")

#: Ends the processes of a run after its second step: all of them by a signal, or one by an error.
PLUGIN = """
import os
import signal

from transformers import TrainerCallback

from sftkit import Plugin, dataclass, hookimpl


class End(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 2 and os.environ.get("ENDS") == "stop":
            signal.raise_signal(signal.SIGTERM)
        if state.global_step == 2 and os.environ.get("ENDS") == "fail" and os.environ["RANK"] == "1":
            raise ArithmeticError("this process fails")


@dataclass(frozen=True, kw_only=True)
class Ending(Plugin):
    @hookimpl
    def trainer_callbacks(self):
        return [End()]
"""


@pytest.fixture(scope="module")
def processes():
    """Starts processes that have imported what a run needs."""
    return warm_processes()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a model whose embeddings are tied, weighted rows of unequal lengths, and a configuration."""
    path = tmp_path_factory.mktemp("tensor_parallel")
    tiny_model("qwen3", tie_word_embeddings=True).save_pretrained(path / "model")
    tiny_tokenizer(chat_template=CHATML).save_pretrained(path / "model")
    (path / "ending.py").write_text(PLUGIN)
    for name, numbers in (("rows", range(100)), ("held_out", range(100, 107))):
        rows = []
        for number in numbers:
            answer = {
                "role": "assistant",
                "content": f"{number} is {'one more ' * (number % 7)}",
                "weight": 1 + number % 3,
            }
            rows.append({"messages": [{"role": "user", "content": f"What is {number}?"}, answer]})
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": "rows.jsonl", "eval": "held_out.jsonl", "max_length": 128}
    config = {"model": "model", "data": data, "train": TRAIN, "plugins": ["ending:Ending"]}
    (path / "sft.yaml").write_text(yaml.safe_dump(config))
    return path


@pytest.fixture(scope="module")
def run(place, processes):
    """Runs sftkit in a number of processes, with four rows in a batch over all; returns exit codes and output."""

    def start(size, output, *options, plugins=(), ends=""):
        parts = 2 if size > 1 else 1
        batch = [f"train.per_device_train_batch_size={4 * parts // size}"]
        selected = [*plugins, *(["tensor_parallel:size=2"] if size > 1 else [])]
        arguments = ["run", "sft.yaml", *batch, *options, "--output", output]
        arguments += [part for name in selected for part in ("-p", name)]
        printed = place / "printed" / output
        shutil.rmtree(printed, ignore_errors=True)
        with start_group(processes, arguments, size, cwd=place, printed=printed, env={"ENDS": ends}) as group:
            return group.wait(), group.outputs

    return start


@pytest.fixture(scope="module")
def finished(run, place):
    """The directory of a run that has finished, made once for each number of processes and kind."""

    def directory(size, kind="plain"):
        path = place / f"{kind}-{size}"
        if not path.exists():
            codes, lines = run(size, path.name, plugins=["packing"] if kind == "packed" else ())
            assert codes == [0] * size, lines
        return path

    return directory


def log_of(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model.safetensors")


def require_equal_weights(found: Path, expected: Path, tolerance: float = 1e-4) -> None:
    weights = weights_of(expected)
    assert weights_of(found).keys() == weights.keys()
    for name, weight in weights_of(found).items():
        torch.testing.assert_close(weight, weights[name], rtol=0, atol=tolerance, msg=name)


pytestmark = pytest.mark.skipif(tuple(map(int, version("torch").split(".")[:2])) < (2, 11), reason="needs torch 2.11")
both = pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)], ids=["alone", "beside data"])


@both
@pytest.mark.parametrize("kind", ["plain", pytest.param("packed", marks=pytest.mark.slow)])
def test_losses_equal_one_process(finished, size, kind):
    expected, found = log_of(finished(1, kind)), log_of(finished(size, kind))
    assert len(expected) == len(found)
    for one, several in zip(expected, found, strict=True):
        assert one.keys() == several.keys()
        for name, value in one.items():
            if not name.endswith(SPEEDS):
                assert several[name] == pytest.approx(value, rel=1e-4), (one["step"], name)


@both
def test_the_saved_model_loads_in_transformers(finished, size):
    require_equal_weights(finished(size), finished(1))
    model, loading = AutoModelForCausalLM.from_pretrained(finished(size), output_loading_info=True)
    assert not loading["missing_keys"]
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.slow
@both
def test_resume_is_exact(run, place, finished, size):
    codes, lines = run(size, f"resumed-{size}", ends="stop")
    assert set(codes) == {143}, lines
    codes, lines = run(size, f"resumed-{size}", "--resume")
    assert codes == [0] * size, lines
    require_equal_weights(place / f"resumed-{size}", finished(size), tolerance=0)


@pytest.mark.parametrize("sizes", [(4, 2), (2, 4)], ids=["fewer", "more"])
@pytest.mark.slow
def test_resume_with_another_number_of_processes(run, place, finished, sizes):
    first, second = sizes
    codes, lines = run(first, f"resized-{first}", ends="stop")
    assert set(codes) == {143}, lines
    allowed = ["--allow-change", "world_size", "--allow-change", "train.per_device_train_batch_size"]
    codes, lines = run(second, f"resized-{first}", "--resume", *allowed)
    assert codes == [0] * second, lines
    require_equal_weights(place / f"resized-{first}", finished(1))


@pytest.mark.slow
@both
def test_a_failing_process_ends_the_run(run, size):
    codes, lines = run(size, f"failing-{size}", ends="fail")
    assert codes == [1] * size, lines
    assert "".join(lines).count("ArithmeticError: this process fails") == 1
