"""Rows 8, 9 and 21 of the table of faults: signals, losses that are not finite, and processes that fail."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sftkit.run.directory import RunDirectory

POISON = Path(__file__).with_name("poison.py")
TOKEN = "%"  # the tiny tokenizer's token 7


@pytest.fixture(autouse=True)
def plugins(tmp_path):
    """Plugins that bring faults into a run, beside it."""
    shutil.copy(POISON, tmp_path)


@pytest.fixture
def manifest(tmp_path):
    """Reads the manifest of a run."""

    def read(run: str) -> dict:
        return json.loads((tmp_path / run / "manifest.json").read_text(encoding="utf-8"))

    return read


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in run.glob("checkpoint-*"))


def questions(numbers, poisoned=()) -> list[dict]:
    return [
        {"prompt": f"What is {n}?" + TOKEN * (n in poisoned), "completion": f" {n} is {'one more ' * (n % 4)}"}
        for n in numbers
    ]


def weights(path: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(path / "model.safetensors")


def test_09_a_loss_that_is_nan_ends_the_run_and_names_step_and_rows(start, configure, manifest, tmp_path):
    train = {"train_sampling_strategy": "sequential", "save_steps": 1, "logging_steps": 10}
    config = configure(train=train, rows=questions(range(24), poisoned=[7]))
    run = start("run", config, "-o", "out", "-p", "poison:Poison")
    assert run.wait() == 3, run.output
    assert "the loss is nan in step 4 (rows 7, 8 of the prepared data)" in run.output
    assert "--row 7" in run.output
    assert manifest("out")["status"] == "failed"
    assert "step 4" in manifest("out")["error"]
    assert checkpoints(tmp_path / "out") == ["checkpoint-2", "checkpoint-3"]
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "out" / "checkpoint-3").values())


@pytest.mark.slow
def test_09_gradients_that_are_not_finite_end_the_run_and_nothing_is_saved(start, configure, manifest, tmp_path):
    config = configure(train={"learning_rate": 1e6, "save_steps": 5, "logging_steps": 100, "max_grad_norm": 0})
    run = start("run", config, "-o", "out")
    assert run.wait() == 3, run.output
    assert "not finite" in run.output
    assert manifest("out")["status"] == "failed"
    assert not checkpoints(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors"))


CASES = [
    pytest.param({"optim": "adamw_torch", "max_grad_norm": 0, "gradient_accumulation_steps": 2}, 2, id="accumulated"),
    pytest.param({}, 1, id="fused", marks=pytest.mark.slow),
    pytest.param({"optim": "adafactor", "gradient_accumulation_steps": 2}, 2, id="adafactor", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("train", "batches"), CASES)
def test_09_a_skipped_step_leaves_no_trace(start, configure, manifest, tmp_path, train, batches):
    """The run equals one without the rows of the step, in weights, optimizer and mean loss."""
    import torch

    constant = {"train_sampling_strategy": "sequential", "lr_scheduler_type": "constant", "save_steps": 100}
    bad = range(2 * batches, 4 * batches)  # the second step
    for name, numbers in {"skipped": range(16), "without": [n for n in range(16) if n not in bad]}.items():
        steps = len(numbers) // 2 // batches
        rows = questions(numbers, poisoned=[bad[-1]])
        config = configure(train={**constant, **train, "max_steps": steps}, rows=rows, name=f"{name}.yaml")
        run = start("run", config, "-o", name, "-p", "poison:Poison", "run.on_nan=skip")
        assert run.wait() == 0, run.output
        assert ("in step 2" in run.output) == (name == "skipped")
    first, second = (weights(tmp_path / name) for name in ("skipped", "without"))
    assert all(torch.equal(first[name], second[name]) for name in second)
    assert manifest("skipped")["skipped_steps"] == 1
    assert manifest("skipped")["metrics"]["train_loss"] == manifest("without")["metrics"]["train_loss"]
    states = [
        torch.load(next((tmp_path / name).glob("checkpoint-*")) / "optimizer.pt")["state"]
        for name in ("skipped", "without")
    ]
    for index, values in states[1].items():
        assert all(torch.equal(torch.as_tensor(states[0][index][key]), torch.as_tensor(values[key])) for key in values)


@pytest.mark.slow
def test_09_more_skipped_steps_than_the_cap_end_the_run(start, configure):
    config = configure(rows=questions(range(24), poisoned=range(24)), run={"on_nan": "skip", "max_skipped": 2})
    run = start("run", config, "-o", "out", "-p", "poison:Poison")
    assert run.wait() == 3
    assert "run.max_skipped is 2, and one more step failed: the loss is nan in step 3" in run.output
    assert "(2 of at most 2)" in run.output
    assert "(3 of at most 2)" not in run.output


def test_08_ctrl_c_saves_the_step_and_says_how_to_continue(start, configure, manifest, tmp_path):
    config = configure(train={"save_steps": 100})
    run = start("run", config, "-o", "out", "-p", "poison:Fault:kind=SIGINT")
    assert run.wait() == 130, run.output
    assert manifest("out")["status"] == "interrupted"
    assert "SIGINT, after step 4: checkpoint-4 is saved" in manifest("out")["error"]
    assert checkpoints(tmp_path / "out") == ["checkpoint-4"]
    again = f"continue with: sftkit run {config} -o out -p poison:Fault:kind=SIGINT --resume"
    assert again in run.output


def test_08_a_signal_in_an_evaluation_leaves_it_and_saves(start, configure, manifest, tmp_path):
    train = {"save_steps": 100, "eval_strategy": "steps", "eval_steps": 3, "per_device_eval_batch_size": 1}
    train |= {"load_best_model_at_end": False, "metric_for_best_model": "loss", "save_total_limit": 1}
    config = configure(train=train, data={"train": "rows.jsonl", "eval": 0.5})
    run = start("run", config, "-o", "out", "-p", "poison:Fault:kind=evaluation")
    assert run.wait() == 143, run.output
    assert manifest("out")["status"] == "interrupted"
    assert checkpoints(tmp_path / "out") == ["checkpoint-3"]
    assert "eval_loss" not in run.output


def test_08_a_run_without_a_checkpoint_says_how_to_start_it_again(start, configure, tmp_path):
    config = configure(
        train={"max_steps": 0, "per_device_eval_batch_size": 1}, data={"train": "rows.jsonl", "eval": 0.5}
    )
    run = start("run", config, "-o", "out", "-p", "poison:Fault:kind=evaluation")
    assert run.wait() == 143, run.output
    assert "interrupted: SIGTERM: nothing is saved" in run.output
    assert run.output.rstrip().endswith("-p poison:Fault:kind=evaluation --resume auto")
    assert not RunDirectory(tmp_path / "out").check("auto", overwrite=False)
    assert RunDirectory(tmp_path / "out").check(True, overwrite=False)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_08_resuming_after_a_signal_continues_exactly(start, configure, tmp_path, kind, code):
    config = configure(train={"save_steps": 100})
    assert start("run", config, "-o", "whole", "-p", "poison:Fault:kind=none").wait() == 0
    fault = ["-p", f"poison:Fault:kind={kind},step=5"]
    assert start("run", config, "-o", "out", *fault).wait() == code
    resumed = start("run", config, "-o", "out", *fault, "--resume")
    assert resumed.wait() == 0, resumed.output
    first, second = (weights(tmp_path / name) for name in ("whole", "out"))
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.slow
def test_08_a_second_signal_ends_the_run_at_once_and_the_last_checkpoint_is_whole(start, configure, tmp_path):
    config = configure(train={"save_steps": 3})
    fault = ["-p", "poison:Fault:kind=twice,step=4"]
    assert start("run", config, "-o", "out", *fault).wait() == -signal.SIGTERM
    assert checkpoints(tmp_path / "out") == ["checkpoint-3"]


@pytest.mark.slow
def test_08_a_signal_to_the_data_workers_too_saves_the_step(start, configure, tmp_path):
    config = configure(train={"save_steps": 100, "dataloader_num_workers": 2})
    run = start("run", config, "-o", "out", "-p", "poison:Fault:kind=group")
    assert run.wait() == 143, run.output
    assert checkpoints(tmp_path / "out") == ["checkpoint-4"]


@pytest.mark.slow
def test_08_sigusr1_saves_and_the_run_goes_on(start, configure, manifest, tmp_path):
    run = start("run", configure(train={"save_steps": 100}), "-o", "out", "-p", "poison:Fault:kind=SIGUSR1")
    assert run.wait() == 0, run.output
    assert checkpoints(tmp_path / "out") == ["checkpoint-12", "checkpoint-4"]
    assert manifest("out")["status"] == "done"


@pytest.mark.slow
def test_08_the_deadline_saves_and_ends_the_run(start, configure, manifest, tmp_path):
    run = start("run", configure(), "-o", "out", "run.max_time=0.01")
    assert run.wait() == 143, run.output
    assert checkpoints(tmp_path / "out") == ["checkpoint-1"]
    assert "the deadline run.max_time" in manifest("out")["error"]


@pytest.mark.slow
def test_08_a_save_longer_than_the_grace_period_is_skipped(start, configure, manifest, tmp_path):
    run = start("run", configure(), "-o", "out", "run.grace=0.0001", "-p", "poison:Fault:kind=SIGTERM")
    assert run.wait() == 143, run.output
    assert not checkpoints(tmp_path / "out")
    assert "more than run.grace allows" in run.output
    assert "the step is not saved" in manifest("out")["error"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["preparing", "loading"])
def test_08_a_signal_before_the_training_ends_the_run_at_once(start, configure, tmp_path, kind):
    run = start("run", configure(), "-o", "out", "-p", f"poison:Fault:kind={kind}")
    assert run.wait() == 143, run.output
    assert "interrupted: SIGTERM, before the training" in run.output
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_08_a_run_in_a_thread_leaves_the_signals_alone(tmp_path):
    from sftkit import Pipeline
    from sftkit.testing import tiny_model, tiny_tokenizer

    train = {"max_steps": 1, "use_cpu": True, "output_dir": str(tmp_path / "out")}
    run = Pipeline(model=tiny_model(), tokenizer=tiny_tokenizer(), data=questions(range(4)), train=train)
    before = signal.getsignal(signal.SIGTERM)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(run.run).result().status == "trained"
    assert signal.getsignal(signal.SIGTERM) == before


def in_two_processes(directory: Path, *options: str) -> tuple[int, str]:
    """The exit code and the output of a run in two processes that wait for each other for ten seconds."""
    program = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no-python"]
    gloo = ["train.use_cpu=true", "train.ddp_backend=gloo", "run.timeout=10", "train.save_steps=100"]
    command = [*program, str(Path(sys.executable).with_name("sftkit")), "run", *options, *gloo, "-o", "out"]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout + done.stderr


FAULTS = {
    "raise": "process 1 failed: ValueError: a fault of a plugin",
    "stall": "process 1 ",
    "SIGKILL": "process 1 does not respond",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAULTS)
def test_21_a_process_that_fails_or_hangs_ends_all_and_is_named(configure, manifest, tmp_path, kind):
    config = configure()
    code, output = in_two_processes(tmp_path, str(config), "-p", f"poison:Fault:kind={kind},process=1")
    assert code == 1
    assert FAULTS[kind] in output
    assert manifest("out")["status"] == "failed"
    assert FAULTS[kind] in manifest("out")["error"]


@pytest.mark.slow
def test_08_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(configure, manifest, tmp_path):
    config = configure(train={"max_steps": 40})
    _, output = in_two_processes(tmp_path, str(config), "-p", "poison:Fault:kind=SIGTERM,process=1")
    assert "process 0: interrupted: SIGTERM, after step 5: checkpoint-5 is saved" in output
    assert manifest("out")["status"] == "interrupted"
    assert checkpoints(tmp_path / "out") == ["checkpoint-5"]


@pytest.mark.slow
def test_08_sigusr1_to_one_of_two_processes_saves_once(configure, tmp_path):
    config = configure(train={"save_total_limit": 5})
    code, output = in_two_processes(tmp_path, str(config), "-p", "poison:Fault:kind=SIGUSR1,process=1")
    assert code == 0, output
    assert checkpoints(tmp_path / "out") == ["checkpoint-12", "checkpoint-5"]


@pytest.mark.slow
def test_09_both_processes_stop_at_the_rows_of_one(configure, manifest, tmp_path):
    rows = questions(range(24), poisoned=[6])
    config = configure(rows=rows, train={"train_sampling_strategy": "sequential", "per_device_train_batch_size": 2})
    code, output = in_two_processes(tmp_path, str(config), "-p", "poison:Poison")
    assert code == 1
    assert "the loss is nan in step 2 (process 1: rows 7, 8 of the prepared data)" in output
    assert "exitcode  : 3" in output
    assert manifest("out")["status"] == "failed"
