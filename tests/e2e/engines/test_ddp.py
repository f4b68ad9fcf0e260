"""DDP, the engine without a plugin: two or four processes with a whole model each."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sftkit.testing import tiny_model, tiny_tokenizer
from sftkit.testing.processes import start_group, warm_processes

COMMON = ["train.use_cpu=true", "train.lr_scheduler_type=constant", "train.logging_steps=1"]
NINE = ["--model", "model", "--data", "nine.jsonl"]
#: All that draws random numbers or divides rows unevenly: an epoch has three steps, of 4, 4 and 3 packed rows.
EXACT = ["--model", "dropping", "data.train=[ones.jsonl,others.jsonl]", "-p", "neftune", "-p", "packing"]
EXACT += ["data.max_length=48"]
EXACT += ["train.save_strategy=steps", "train.save_steps=2"]
EXACT += ["-p", "plugin:Watching"]
EXACT += ["train.gradient_accumulation_steps=2", "train.per_device_train_batch_size=1", "train.save_total_limit=9"]

SOURCES = ("loss_ones", "loss_others", "trained_tokens_ones", "trained_tokens_others", "trained_tokens")

#: A plugin that fails in one process at the second step, and one that writes down the random state of each process.
PLUGINS = """
import dataclasses
import json
import os
import random
from pathlib import Path

import numpy
import torch

from transformers import TrainerCallback

from sftkit.api import Plugin, hookimpl


@dataclasses.dataclass(frozen=True)
class Failing(Plugin):
    @hookimpl
    def trainer_callbacks(self, config):
        return [Fails()]


class Fails(TrainerCallback):
    def on_step_end(self, args, state, control, **rest):
        if os.environ.get("RANK") == "1" and state.global_step == 2:
            raise ValueError("the second process has had enough")


@dataclasses.dataclass(frozen=True)
class Watching(Plugin):
    @hookimpl
    def trainer_callbacks(self, config):
        return [Watches()]


class Watches(TrainerCallback):
    def on_step_end(self, args, state, control, **rest):
        states = random.getstate()[1], numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        name = f"{Path(args.output_dir).name}-{args.process_index}-{state.global_step}.json"
        Path(name).write_text(json.dumps(states))
"""


class Runs:
    """Runs ``sftkit run`` in groups of processes, in one directory with its data."""

    def __init__(self, place: Path) -> None:
        self.place, self._context = place, warm_processes()

    def start(self, name: str, size: int, *options: str) -> tuple[list[int], list[str]]:
        """The exit codes and outputs of a run in the directory ``name``."""
        arguments = ["run", *COMMON, *options, "-o", name]
        printed = self.place / f"{name}-{size}-printed"
        with start_group(self._context, arguments, size, cwd=self.place, printed=printed) as group:
            return group.wait(), group.outputs

    def __call__(self, name: str, size: int, *options: str) -> Path:
        """A run that succeeds; returns its directory."""
        codes, outputs = self.start(name, size, *options)
        assert codes == [0] * size, "\n".join(outputs)
        return self.place / name


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Makes the runs of this module, beside a model with dropout and rows of different lengths."""
    place = tmp_path_factory.mktemp("ddp")
    tiny_model(attention_dropout=0.2).save_pretrained(place / "dropping")
    tiny_model().save_pretrained(place / "model")
    for name in ("model", "dropping"):
        tiny_tokenizer().save_pretrained(place / name)
    rows = [{"prompt": f"What is {n}?", "completion": f" {n} is {'one more ' * (n % 4)}"} for n in range(33)]
    parts = {"nine": rows[:9], "many": rows, "ones": rows[1::3], "others": [*rows[::3], *rows[2::3]]}
    for name, some in parts.items():
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    (place / "plugin.py").write_text(PLUGINS)
    return Runs(place)


@pytest.fixture(scope="module")
def whole(runs):
    """A run of two processes that ends in the second epoch, with all that makes a resumption hard."""
    return runs("whole", 2, *EXACT, "train.max_steps=5")


@pytest.fixture(scope="module")
def resumed(runs):
    """The same, stopped after the first step of the second epoch, and resumed."""
    runs("part", 2, *EXACT, "train.max_steps=4")
    return runs("part", 2, *EXACT, "train.max_steps=5", "--resume")


def logged(directory: Path, *names: str) -> dict[int, list[float]]:
    """Values of each step; of a step that was trained twice, the later ones."""
    lines = (directory / "log.jsonl").read_text().splitlines()
    entries: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return {entry["step"]: [entry[name] for name in names] for entry in entries if "grad_norm" in entry}


def weights(directory: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_losses_equal_one_process(runs, processes):
    """The second step of an epoch has one row, so that all processes but one have none."""
    options = [*NINE, "train.num_train_epochs=2", "train.save_strategy=no"]
    several, one = (
        logged(
            runs(f"{size}-of-{processes}", size, *options, f"train.per_device_train_batch_size={8 // size}"),
            *("loss", "grad_norm", "trained_tokens"),
        )
        for size in (processes, 1)
    )
    assert [*one] == [1, 2, 3, 4]
    for step, expected in one.items():
        assert several[step] == pytest.approx(expected, rel=1e-5), step


def test_the_saved_model_loads_in_transformers(whole):
    from transformers import AutoModelForCausalLM

    saved, loaded = weights(whole), AutoModelForCausalLM.from_pretrained(whole).state_dict()
    assert {*loaded} - {*saved} <= {"lm_head.weight"}
    assert all(value.equal(loaded[name]) for name, value in saved.items())


def test_resume_is_exact(whole, resumed):
    names = ("loss", "grad_norm", "token_accuracy", "trained_tokens", "trained_tokens_ones", "loss_others")
    assert logged(resumed, *names) == logged(whole, *names)
    expected = weights(whole)
    assert all(value.equal(expected[name]) for name, value in weights(resumed).items())


def test_the_sources_sum_to_the_loss(whole):
    """Also in a step that has no row of a source."""
    before = dict.fromkeys(("ones", "others"), 0)
    entries = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    for entry in (entry for entry in entries if "grad_norm" in entry):
        counts = {name: entry[f"trained_tokens_{name}"] for name in before}
        assert sum(counts.values()) == entry["trained_tokens"]
        new = {name: counts[name] - before[name] for name in counts if counts[name] > before[name]}
        total = sum(entry[f"loss_{name}"] * number for name, number in new.items())
        assert total / sum(new.values()) == pytest.approx(entry["loss"], rel=1e-6)
        before = counts


@pytest.mark.slow
def test_a_resumption_between_two_log_entries_changes_neither(runs):
    """The last entry of the first part is that of the third step, and it ends with the fourth."""
    options = [*EXACT, "train.logging_steps=3"]
    once = runs("seldom", 2, *options, "train.max_steps=6")
    runs("seldom-part", 2, *options, "train.max_steps=4")
    again = runs("seldom-part", 2, *options, "train.max_steps=6", "--resume")
    assert logged(again, "loss", *SOURCES) == logged(once, "loss", *SOURCES)
    [(*losses, ones, others, trained)] = [values for step, values in logged(once, *SOURCES).items() if step == 6]
    assert (len(losses), ones + others) == (2, trained)


def test_each_process_draws_its_own_random_numbers_and_goes_on_with_them(runs, whole, resumed):
    """Python's, numpy's and torch's."""
    first, second = (json.loads((runs.place / f"whole-{rank}-5.json").read_text()) for rank in (0, 1))
    assert all(one != two for one, two in zip(first, second, strict=True))
    found = [json.loads((runs.place / f"part-{rank}-5.json").read_text()) for rank in (0, 1)]
    assert found == [first, second]


@pytest.mark.slow
def test_a_stream_is_resumed_exactly_in_each_process(runs):
    stream = ["--model", "dropping", "--data", "many.jsonl", "-p", "neftune", "data.streaming=true", "data.window=4"]
    stream += ["train.save_strategy=steps", "train.save_steps=2", "train.per_device_train_batch_size=1"]
    once = runs("stream", 2, *stream, "train.max_steps=7")
    runs("stream-part", 2, *stream, "train.max_steps=4")
    again = runs("stream-part", 2, *stream, "train.max_steps=7", "--resume")
    assert logged(again, "loss", "grad_norm") == logged(once, "loss", "grad_norm")
    expected = weights(once)
    assert all(value.equal(expected[name]) for name, value in weights(again).items())


@pytest.fixture(scope="module")
def of_two(runs):
    """A run of two processes over two epochs of nine rows, each of three steps of four rows."""
    saving = ["train.save_strategy=steps", "train.save_steps=4", "train.save_total_limit=9"]
    options = [*NINE, *saving, "train.num_train_epochs=2", "train.gradient_accumulation_steps=2"]
    return runs("of-two", 2, *options, "train.per_device_train_batch_size=1"), options


@pytest.mark.parametrize("processes", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_resume_with_another_number_of_processes(runs, of_two, processes):
    """They go on in the middle of an epoch, and a step has as many rows as before, in other batches."""
    two, options = of_two
    other = shutil.copytree(two, runs.place / f"then-{processes}", ignore=shutil.ignore_patterns("checkpoint-6"))
    killed = json.loads((other / "manifest.json").read_text()) | {"status": "running"}
    (other / "manifest.json").write_text(json.dumps(killed))
    batch, steps = (4, 1) if processes == 1 else (1, 1)
    options = [*options, f"train.per_device_train_batch_size={batch}", f"train.gradient_accumulation_steps={steps}"]
    runs(other.name, processes, *options, "--resume")
    for step, values in logged(two, "loss", "grad_norm", "trained_tokens").items():
        assert logged(other, "loss", "grad_norm", "trained_tokens")[step] == pytest.approx(values, rel=1e-5), step
    assert (other / "log.jsonl").read_text().count('"grad_norm"') == 8  # the last two steps were trained again
    expected = weights(two)
    assert all(value.allclose(expected[name], atol=1e-6) for name, value in weights(other).items())


def test_a_failing_process_ends_the_run(runs):
    codes, outputs = runs.start("failed", 2, "-p", "plugin:Failing", *NINE, "train.max_steps=4")
    assert codes == [1, 1], outputs
    assert "".join(outputs).count("ValueError: the second process has had enough") == 1
    assert json.loads((runs.place / "failed" / "manifest.json").read_text())["status"] == "failed"
