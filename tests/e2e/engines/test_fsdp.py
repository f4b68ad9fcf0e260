"""FSDP: two or four gloo processes that each hold a shard of the model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sftkit.testing import tiny_conversations, tiny_model, tiny_tokenizer
from sftkit.testing.processes import start_group, warm_processes

SHARDED = ["-p", "fsdp"]
COMMON = ["train.use_cpu=true", "train.lr_scheduler_type=constant", "train.learning_rate=0.01", "train.logging_steps=1"]
ROWS = ["-m", "model", "-d", "rows.jsonl", "data.eval=held.jsonl", "train.eval_strategy=no"]
SAVING = ["train.save_strategy=steps", "train.save_steps=2"]
CHANGED = ["--resume", "--allow-change", "world_size,train.per_device_train_batch_size"]
LORA = ["-m", "tied", "-d", "chats.jsonl", "-p", "chatml", "-p", "peft:r=2", "-p", "neftune", "-p", "packing"]
LORA += ["data.max_length=96", "train.gradient_accumulation_steps=2", "train.gradient_checkpointing=true", *SAVING]
IMAGES = ["-m", "images", "-d", "images.jsonl", "train.train_sampling_strategy=sequential", "train.save_strategy=no"]

#: A plugin that fails in one process at the second step.
FAILING = """
import dataclasses
import os

from transformers import TrainerCallback

from sftkit.api import Plugin, hookimpl


class Callback(TrainerCallback):
    def on_step_end(self, args, state, control, **rest):
        if os.environ.get("RANK") == "1" and state.global_step == 2:
            raise ValueError("the second process has had enough")


@dataclasses.dataclass(frozen=True)
class Failing(Plugin):
    @hookimpl
    def trainer_callbacks(self, config):
        return [Callback()]
"""


def size(rows: int) -> list[str]:
    return [f"train.per_device_train_batch_size={rows}"]


def steps(number: int) -> list[str]:
    return [f"train.max_steps={number}"]


def entries(directory: Path, name: str) -> list[float]:
    lines = map(json.loads, (directory / "log.jsonl").read_text().splitlines())
    return [entry[name] for entry in lines if name in entry]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    name = "adapter_model.safetensors" if (directory / "adapter_config.json").is_file() else "model.safetensors"
    return load_file(directory / name)


def require_equal(one: Path, other: Path, exact: bool = False) -> None:
    """Losses, gradient norms and weights; those of a resumed run from where it goes on."""
    tolerance: dict[str, Any] = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 1e-5}
    for name in ("loss", "grad_norm"):
        expected, found = entries(one, name), entries(other, name)
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), **tolerance)
    expected, found = weights(one), weights(other)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, **tolerance, msg=name)


class Runs:
    """Runs ``sftkit run`` in several processes, in one directory with its data."""

    def __init__(self, place: Path) -> None:
        self.place, self._context = place, warm_processes()

    def start(self, name: str, processes: int, *options: str) -> tuple[list[int], list[str]]:
        """The exit codes and outputs of a run in the directory ``name``."""
        arguments = ["run", *COMMON, *options, "--output", name]
        printed = self.place / f"{name}-{processes}-printed"
        with start_group(self._context, arguments, processes, cwd=self.place, printed=printed) as group:
            return group.wait(), group.outputs

    def __call__(self, name: str, processes: int, *options: str) -> Path:
        """A run that succeeds; returns its directory."""
        codes, outputs = self.start(name, processes, *options)
        assert codes == [0] * processes, "\n".join(outputs)
        return self.place / name

    def copied(self, name: str, copy: str) -> str:
        """A copy of a run, to be resumed."""
        shutil.copytree(self.place / name, self.place / copy)
        return copy


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("fsdp")
    tiny_model().save_pretrained(place / "model")
    tiny_model("gemma2", tie_word_embeddings=True).save_pretrained(place / "tied")
    for name in ("model", "tied"):
        tiny_tokenizer().save_pretrained(place / name)
    for name, asked in (("rows", "is"), ("held", "was")):
        rows = [{"prompt": f"What {asked} {n}?", "completion": f" {n} is {'one more ' * (n % 4)}"} for n in range(40)]
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny_conversations(160)))
    (place / "failing.py").write_text(FAILING)
    return Runs(place)


@pytest.fixture(scope="module")
def one(runs):
    """The run of one process with a whole model."""
    return runs("one", 1, *ROWS, *SAVING, *size(8), *steps(4))


@pytest.fixture(scope="module")
def whole(runs):
    """The run of two processes with a half each."""
    return runs("whole", 2, *ROWS, *SHARDED, *SAVING, *size(4), *steps(4))


@pytest.fixture(scope="module")
def half(runs):
    """The first two steps of it."""
    return runs("half", 2, *ROWS, *SHARDED, *SAVING, *size(4), *steps(2))


def test_losses_equal_one_process(one, whole):
    require_equal(one, whole)
    assert entries(whole, "eval_loss") == pytest.approx(entries(one, "eval_loss"), rel=1e-5)


def test_the_saved_model_loads_in_transformers(one, whole):
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    loaded, info = AutoModelForCausalLM.from_pretrained(whole, output_loading_info=True)
    assert type(loaded) is LlamaForCausalLM
    assert not any(info.values())
    expected = weights(one)
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)
    assert loaded.config.architectures == ["LlamaForCausalLM"]


def test_each_process_writes_its_own_half_of_a_checkpoint_and_no_pickle_of_it(whole):
    checkpoint = whole / "checkpoint-4"
    for folder in ("sharded_weights", "optimizer_shards"):
        sizes = [path.stat().st_size for path in sorted((checkpoint / folder).iterdir())]
        assert len(sizes) == 2
        assert max(sizes) < 1.1 * min(sizes)
    pickles = {path.name for path in checkpoint.rglob("*") if path.suffix in (".pt", ".pth", ".metadata", ".bin")}
    assert pickles == {"scheduler.pt", "rng_state_0.pth", "rng_state_1.pth"}
    assert not (checkpoint / "model.safetensors").exists()


def test_resume_is_exact(runs, whole, half):
    resumed = runs(runs.copied(half.name, "resumed"), 2, *ROWS, *SHARDED, *SAVING, *size(4), *steps(4), "--resume")
    require_equal(whole, resumed, exact=True)


@pytest.mark.slow
def test_resume_with_another_number_of_processes(runs, whole, half):
    """From two to four."""
    resumed = runs(runs.copied(half.name, "four"), 4, *ROWS, *SHARDED, *SAVING, *size(2), *steps(4), *CHANGED)
    require_equal(whole, resumed)


@pytest.mark.slow
def test_four_processes_can_go_on_as_two(runs, whole):
    runs("from-four", 4, *ROWS, *SHARDED, *SAVING, *size(2), *steps(2))
    require_equal(whole, runs("from-four", 2, *ROWS, *SHARDED, *SAVING, *size(4), *steps(4), *CHANGED))


@pytest.mark.slow
def test_a_failing_process_ends_the_run(runs):
    codes, outputs = runs.start("failed", 2, *ROWS, *SHARDED, *size(4), *steps(4), "-p", "failing:Failing")
    assert codes == [1, 1], outputs
    assert "".join(outputs).count("ValueError: the second process has had enough") == 1
    assert not (runs.place / "failed" / "model.safetensors").exists()


def test_a_single_process_is_refused_with_the_command_that_starts_several(runs):
    codes, outputs = runs.start("alone", 1, *ROWS, *SHARDED)
    assert codes == [2]
    assert "sftkit launch --nproc N run" in outputs[0]


@pytest.mark.slow
def test_adapters_new_tokens_packing_noise_and_accumulation_continue_exactly(runs):
    options = [*LORA, *SHARDED, *size(1)]
    whole = runs("lora", 2, *options, *steps(4))
    runs("lora-half", 2, *options, *steps(2))
    require_equal(whole, runs("lora-half", 2, *options, *steps(4), "--resume"), exact=True)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])  # with four, a matrix of two rows leaves two processes nothing
def test_an_adapter_trains_as_in_one_process(runs, processes):
    options = [*LORA, "-p", "no:neftune", *steps(3)]
    alone = runs(f"adapter-one-{processes}", 1, *options, *size(4))
    require_equal(alone, runs(f"adapter-{processes}", processes, *options, *SHARDED, *size(4 // processes)))


@pytest.mark.slow
def test_the_adapter_of_a_run_is_trained_further(runs):
    options = [*LORA[:4], *LORA[4:6], *steps(2), "train.save_strategy=no"]
    runs("first", 1, *options, "-p", "peft:r=2", *size(4))
    options[1] = "first"
    alone = runs("further-one", 1, *options, *size(4))
    require_equal(alone, runs("further", 2, *options, *SHARDED, *size(2)))


@pytest.mark.slow
def test_weights_that_are_drawn_are_those_of_one_process(runs):
    options = [*ROWS, "model.init=random", *steps(2)]
    require_equal(runs("drawn-one", 1, *options, *size(8)), runs("drawn", 2, *options, *SHARDED, *size(4)))


@pytest.mark.slow
@pytest.mark.parametrize("trained", ["tower", "adapter", "neither"])
def test_processes_with_and_without_images_in_their_batches_train_as_one_does(runs, trained):
    from vision_models import drawn_image, tiny_vision_model

    for part in tiny_vision_model():
        part.save_pretrained(runs.place / "images")
    drawn_image("red").save(runs.place / "red.png")
    answer = {"role": "assistant", "content": "Red."}
    rows = [
        {"image": "red.png", "messages": [{"role": "user", "content": "<image>What?"}, answer]},
        {"image": None, "messages": [{"role": "user", "content": "What?"}, answer]},
    ]
    (runs.place / "images.jsonl").write_text("\n".join(map(json.dumps, rows * 4)))
    more = {"tower": [], "adapter": ["-p", "peft:part=both"], "neither": []}[trained]
    vision = "vision" if trained == "neither" else "vision:freeze_vision=false"
    options = [*IMAGES, "-p", vision, *more, *steps(2)]
    alone = runs(f"images-{trained}-one", 1, *options, *size(2))
    require_equal(alone, runs(f"images-{trained}", 2, *options, *SHARDED, *size(1)))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw_torch", "sgd", "rmsprop", "adagrad"])
def test_the_state_of_other_optimizers_continues_exactly(runs, optimizer):
    options = [*ROWS, *SHARDED, *SAVING, *size(4), f"train.optim={optimizer}"]
    whole = runs(f"{optimizer}-whole", 2, *options, *steps(4))
    runs(f"{optimizer}-half", 2, *options, *steps(2))
    require_equal(whole, runs(f"{optimizer}-half", 2, *options, *steps(4), "--resume"), exact=True)


@pytest.mark.slow
def test_the_best_model_is_saved_and_completions_are_those_of_one_process(runs):
    """The best is said to be the one with the highest loss, so it is not the last one."""
    options = [*ROWS, *steps(6), "train.greater_is_better=true", "evaluate.best=loss", "evaluate.metrics=[exact_match]"]
    options += ["train.eval_strategy=steps", "train.eval_steps=2", "evaluate.rows=5", "evaluate.max_new_tokens=4"]
    alone, sharded = runs("best-one", 1, *options, *size(8)), runs("best", 2, *options, *SHARDED, *size(4))
    best = [json.loads((run / "manifest.json").read_text())["best"] for run in (alone, sharded)]
    assert best[0]["step"] == best[1]["step"] == 2
    require_equal(alone, sharded)
    assert entries(alone, "eval_exact_match") == entries(sharded, "eval_exact_match")


@pytest.mark.slow
def test_mixed_precision_is_close_to_full_precision(runs, one):
    mixed = runs("mixed", 2, *ROWS, "-p", "fsdp:dtype=bfloat16,reshard_after_forward=false", *size(4), *steps(4))
    assert entries(mixed, "loss") == pytest.approx(entries(one, "loss"), rel=1e-2)
    assert {value.dtype for value in weights(mixed).values()} == {torch.float32}


@pytest.mark.slow
def test_a_checkpoint_of_other_weights_is_an_error(runs, half):
    other = runs.place / runs.copied(half.name, "other") / "checkpoint-2"
    from sftkit import checkpoints

    shard = next((other / "sharded_weights").iterdir())
    shard.write_bytes(next((other / "optimizer_shards").iterdir()).read_bytes())
    known = json.loads((other / "checkpoint.json").read_text())
    checkpoints.write(other, {name: value for name, value in known.items() if name not in ("files", "digest")})
    codes, outputs = runs.start("other", 2, *ROWS, *SHARDED, *SAVING, *size(4), *steps(4), "--resume")
    assert codes[0] == 2
    assert "not of this model" in outputs[0]
