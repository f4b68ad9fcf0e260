"""Rows 7 and 18 of the table of faults: the run directory, who may write to it, and what may change before a resume."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
from contextlib import suppress
from datetime import datetime
from multiprocessing import connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, TrainerCallback
from typer.testing import CliRunner

from sftkit import Plugin, dataclass, hookimpl
from sftkit.cli import app
from sftkit.config.resume_fields import FIXED, FREE, LENGTH, unclassified
from sftkit.config.source import ConfigSource
from sftkit.errors import ConfigError, DataError, HookError, Problem, RunError
from sftkit.run import lock
from sftkit.run.directory import default_directory
from sftkit.run.manifest import MANIFEST
from sftkit.run.pipeline import Pipeline
from sftkit.run.stages import Stages
from sftkit.testing import tiny_model, tiny_tokenizer
from sftkit.training.engine import Engine

#: The variables of the first of two processes.
GROUP = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
ROWS = [{"prompt": f"What is {n}?", "completion": f" {n} is {'one more ' * (n % 4)}"} for n in range(8)]
TRAIN = {
    "max_steps": 4,
    "per_device_train_batch_size": 2,
    "save_steps": 2,
    "save_strategy": "steps",
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "use_cpu": True,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model, data, and a run of four steps that was saved after two and four."""
    path = tmp_path_factory.mktemp("home")
    tiny_model(layers=1).save_pretrained(path / "model")
    tiny_tokenizer().save_pretrained(path / "model")
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    pipeline(path, path / "run").run()
    return path


def pipeline(home: Path, output: Path, train: dict[str, Any] | None = None, **options: Any) -> Pipeline:
    """A run of the model and the data in ``home``."""
    sections = {"model": str(home / "model"), "data": str(home / "rows.jsonl")}
    sections |= {name: options.pop(name) for name in ("model", "data", "run") if name in options}
    sections["train"] = {**TRAIN, **(train or {}), "output_dir": str(output)}
    return Pipeline(config=sections, **options)


@pytest.fixture
def done(home: Path, tmp_path: Path) -> Path:
    """A copy of the run in ``home``."""
    return Path(shutil.copytree(home / "run", tmp_path / "run"))


@pytest.fixture
def stopped(done: Path) -> Path:
    """A copy of that run as it is if it is killed after its second step."""
    shutil.rmtree(done / "checkpoint-4")
    found = manifest(done)
    part = {**found["parts"][0], "status": "running", "ended": None, "to_step": None}
    (done / MANIFEST).write_text(json.dumps({**found, "status": "running", "parts": [part]}))
    return done


def manifest(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / MANIFEST).read_text())
    return found


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def rates(run: Path) -> dict[int, float]:
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {entry["step"]: entry["learning_rate"] for entry in entries if "learning_rate" in entry}


def texts(problems: tuple[Problem, ...]) -> str:
    return "\n".join(map(str, problems))


# Row 7: read-only or non-empty output directory; an existing run is not overwritten unless asked to.


def test_07_an_unusable_output_directory_is_an_error_before_data_is_read(home, tmp_path):
    file, other, foreign = tmp_path / "file", tmp_path / "other", tmp_path / "foreign"
    file.write_text("")
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    foreign.mkdir()
    (foreign / MANIFEST).write_text('{"name": "a browser extension", "status": "done"}')
    expected = {
        file: "the output is a file",
        file / "run": f"{file} is a file",
        other: "the output directory is not empty, and does not hold a run",
        foreign: "the output directory is not empty, and does not hold a run",
        home / "run": "the output directory holds a run already -> continue it with resume=True",
        Path("/proc/sftkit/run"): "the directory cannot be used",
    }
    for output, what in expected.items():
        for options in [{}] if output == home / "run" else [{}, {"overwrite": True}, {"resume": "auto"}]:
            with pytest.raises((ConfigError, RunError), match=what):
                pipeline(home, output, data="nowhere.jsonl", **options).run()
    assert (contents(other), len(contents(foreign))) == ({"thesis.txt": b"years of work"}, 1)


def test_07_a_read_only_output_directory_is_an_error_before_data_is_read(home, tmp_path):
    output = tmp_path / "read-only"
    output.mkdir(mode=0o555)
    immutable = os.geteuid() == 0
    if immutable and subprocess.run(["chattr", "+i", output], capture_output=True, check=False).returncode:
        pytest.skip("root can write everywhere, and the file system has no immutable directories")
    try:
        for path in (output, output / "run"):
            with pytest.raises(ConfigError, match="is not writable -> choose another directory"):
                pipeline(home, path, data="nowhere.jsonl").run()
    finally:
        if immutable:
            subprocess.run(["chattr", "-i", output], check=True)


def test_07_overwrite_removes_what_the_run_wrote_once_the_new_one_is_loaded(home, done, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "weights").write_text("kept")
    (done / "thesis.txt").write_text("years of work")
    (done / "checkpoint-2" / "score.txt").write_text("0.9")
    (done / "checkpoint-50").mkdir()
    (done / "checkpoint-60").symlink_to(outside)
    shutil.rmtree(done / "checkpoint-4")
    (done / "checkpoint-4").symlink_to(outside)
    damaged = manifest(done)
    (done / MANIFEST).write_text(json.dumps({**damaged, "files": [*damaged["files"], "../outside/weights", "/x"]}))
    before, model = contents(done), tmp_path / "model"
    shutil.copytree(home / "model", model)
    (model / "model.safetensors").write_bytes((home / "model" / "model.safetensors").read_bytes()[:-100])
    for options in ({"model": str(model)}, {"data": "nowhere.jsonl"}, {"train": {"learning_rate": -1}}):
        with pytest.raises((ConfigError, DataError)):
            pipeline(home, done, overwrite=True, **options).run()
    assert contents(done) == before
    with pytest.raises(ConfigError):  # nor does a failed start leave a directory that would be in the way
        pipeline(home, tmp_path / "new" / "run", model=str(model)).run()
    assert not (tmp_path / "new").exists()
    pipeline(home, done, {"save_steps": 9, "max_steps": 1}, overwrite=True).run()
    assert [part["to_step"] for part in manifest(done)["parts"]] == [1]
    assert [*rates(done)] == [1]
    assert not {f"checkpoint-2/{name}" for name in ("optimizer.pt", "trainer_state.json")} & {*contents(done)}
    assert (done / "thesis.txt").read_text() == "years of work"
    assert (done / "checkpoint-2" / "score.txt").read_text() == "0.9"
    assert (done / "checkpoint-50").is_dir()
    assert (done / "checkpoint-60").is_symlink()
    assert (outside / "weights").read_text() == "kept"


def test_07_of_two_runs_that_start_at_once_one_is_refused_and_a_killed_one_is_replaced(start, configure, tmp_path):
    config = configure(train={"max_steps": 100_000, "save_steps": 100_000})
    two = [start("run", config, "-o", "run", "--resume", "auto") for _ in range(2)]
    connection.wait([command.process.sentinel for command in two], timeout=120)
    refused, running = sorted(two, key=lambda command: command.process.is_alive())
    running.wait_until((tmp_path / "run" / MANIFEST).exists)
    assert refused.wait() == 2
    assert f"error: run: process {running.process.pid} on {os.uname().nodename}" in refused.output
    assert "is running in this directory -> wait for its end" in refused.output
    third = start("run", config, "-o", "run", "--overwrite")
    assert third.wait() == 2, third.output
    assert f"process {running.process.pid} on" in third.output
    running.send(signal.SIGKILL)
    running.wait()
    fewer = ("train.max_steps=1", "--allow-change", "train.max_steps")
    again = start("run", config, "-o", "run", "--resume", "auto", *fewer)
    assert again.wait() == 0, again.output
    assert f"process {running.process.pid} on" in again.output
    assert "the run had saved nothing yet: it starts again from the beginning" in again.output
    parts = manifest(tmp_path / "run")["parts"]
    assert [(part["status"], part["from_step"], part["to_step"]) for part in parts] == [
        ("interrupted", 0, None),
        ("done", 0, 1),
    ]
    assert not (tmp_path / "run" / lock.LOCK).exists()


def test_07_a_lock_from_another_machine_is_held_while_it_gives_signs_of_life(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(lock, "SILENCE", 0.2)
    path = tmp_path / lock.LOCK
    path.write_text(json.dumps({"host": "elsewhere", "process": 7, "started": "yesterday"}))
    with lock.locked(tmp_path):
        assert "process 7 on elsewhere" in caplog.text
        with pytest.raises(RunError, match=f"process {os.getpid()} on"), lock.locked(tmp_path):
            pass
    assert not path.exists()
    path.write_text(json.dumps({"host": "elsewhere", "process": 7, "started": "yesterday"}))
    monkeypatch.setattr(lock.time, "sleep", lambda _: os.utime(path))
    with pytest.raises(RunError, match=f"process 7 on elsewhere.* remove {path}"), lock.locked(tmp_path):
        pass
    assert path.exists()


def is_open(file: int) -> bool:
    with suppress(OSError):
        return os.fstat(file).st_size >= 0
    return False


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked")
def test_07_the_lock_closes_no_file_of_a_forked_process(tmp_path):
    with lock.locked(tmp_path / "run"):
        if not (worker := os.fork()):
            file = os.open(tmp_path / "own", os.O_CREAT | os.O_RDWR)  # has the number that the lock's file had
            if not (child := os.fork()):
                os._exit(0 if is_open(file) else 1)
            os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 0


def test_07_a_run_that_was_killed_while_it_wrote_its_first_manifest_is_not_in_the_way(home, tmp_path):
    (tmp_path / "run").mkdir()
    for name in (lock.LOCK, f".{MANIFEST}.partial"):
        (tmp_path / "run" / name).write_text("{")
    assert pipeline(home, tmp_path / "run", resume="auto").check() == ()


class RaisesAtTheEnd(TrainerCallback):
    def on_train_end(self, *_: Any, **__: Any) -> None:
        raise OSError("no connection")


class RaisesAtTheLastLog(TrainerCallback):
    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
        if "train_loss" in logs:
            raise OSError("no connection")


class RefusesAtTheLastLog(TrainerCallback):
    def on_log(self, args: Any, state: Any, control: Any, logs: Any, **_: Any) -> None:
        if "train_loss" in logs:
            raise RunError("no connection")


@dataclass(frozen=True, kw_only=True)
class RaisesInExport(Plugin):
    """Writes a file, and raises."""

    @hookimpl
    def export_model(self, directory: Path) -> None:
        """Raises."""
        (directory / "half.bin").write_text("")
        raise OSError("no connection")


@pytest.mark.parametrize(
    "guilty",
    [RaisesAtTheEnd(), RaisesAtTheLastLog(), RefusesAtTheLastLog(), RaisesInExport()],
    ids=lambda g: type(g).__name__,
)
def test_07_what_raises_after_training_does_not_cost_the_model(home, tmp_path, guilty):
    output = tmp_path / "run"
    options = {"plugins": [guilty]} if isinstance(guilty, Plugin) else {"callbacks": [guilty]}
    with pytest.raises((OSError, HookError, RunError), match="no connection"):
        pipeline(home, output, {"save_steps": 9}, **options).run()
    expected = load_file(home / "run" / "model.safetensors")
    assert all(value.equal(expected[name]) for name, value in load_file(output / "model.safetensors").items())
    AutoModelForCausalLM.from_pretrained(output)
    found = manifest(output)
    assert (found["status"], found["parts"][-1]["status"]) == ("failed", "failed")
    assert {"model.safetensors", "tokenizer.json"} <= {*found["files"]}
    if isinstance(guilty, Plugin):  # what it has written is the run's, too
        data = {"train": str(home / "rows.jsonl"), "eval": 0.5}
        pipeline(home, output, {"max_steps": 0}, overwrite=True, data=data).run()
        assert {*contents(output)} == {MANIFEST, "config.yaml", "log.jsonl", "rows.jsonl"}


# Row 18: data, configuration or number of processes changed before a resume.


def test_18_every_training_argument_is_free_to_change_or_compared():
    assert unclassified() == []


def test_18_a_changed_configuration_is_refused_before_data_is_read(home, stopped):
    changed = {
        "learning_rate": 1e-4, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "seed": 1,
        "lr_scheduler_type": "linear", "warmup_steps": 1, "weight_decay": 0.1, "bf16": True, "max_steps": 3,
    }  # fmt: skip
    with pytest.raises(RunError) as raised:
        pipeline(home, stopped, changed, resume=True, data="nowhere.jsonl", plugins=["neftune"]).run()
    expected = {f"train.{name}" for name in changed} | {"data.train", "plugins.neftune"}
    assert {problem.where for problem in raised.value.problems} == expected
    what = "train.learning_rate: changed since the run began: 0.001 -> 0.0001 -> set it back, accept the change with"
    assert what in texts(raised.value.problems)
    allowed = ["plugins.neftune", "data", *(f"train.{name}" for name in changed if name != "learning_rate")]
    with pytest.raises(RunError, match=r"^train.learning_rate: [^\n]*$"):
        pipeline(home, stopped, changed, resume=True, allow_changes=allowed, plugins=["neftune"]).run()
    with pytest.raises(RunError, match="the state in the checkpoint is of another kind: None -> 'sgd'"):
        pipeline(home, stopped, {"optim": "sgd"}, resume=True, allow_changes=["train"]).run()


def test_18_logging_saving_evaluation_and_more_steps_are_free_to_change(home, stopped, caplog):
    free = {"logging_steps": 5, "save_steps": 3, "save_total_limit": 7, "dataloader_num_workers": 1, "run_name": "b"}
    free |= {"per_device_eval_batch_size": 1, "max_steps": 6, "gradient_checkpointing": True}
    for resume in (True, "auto"):
        assert pipeline(home, stopped, free, resume=resume).check() == ()
    names = ["train.learning_rat", "world_size"]
    problems = pipeline(home, stopped, resume=True, allow_changes=names).check()
    assert "nothing of this name can change -> did you mean" in texts(problems)
    assert "nothing is resumed" in texts(pipeline(home, stopped, overwrite=True, allow_changes=["data"]).check())


def test_18_other_processes_continue_exactly_or_are_refused(home, stopped, monkeypatch):
    for name, text in GROUP.items():
        monkeypatch.setenv(name, text)
    problems = pipeline(home, stopped, resume=True).check()
    assert [problem.where for problem in problems] == ["world_size"]
    assert "1 processes -> 2, and a step has 4 rows instead of 2" in texts(problems)
    assert pipeline(home, stopped, resume=True, allow_changes=["world_size"]).check() == ()
    assert pipeline(home, stopped, {"per_device_train_batch_size": 1}, resume=True).check() == ()
    monkeypatch.setenv("WORLD_SIZE", "1")
    divided = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    assert pipeline(home, stopped, divided, resume=True).check() == ()
    means = {"average_tokens_across_devices": False, "dataloader_drop_last": True}
    allowed = [f"train.{name}" for name in means]
    for name, value in means.items():
        problems = pipeline(home, stopped, {**divided, name: value}, resume=True, allow_changes=allowed).check()
        expected = {"train.per_device_train_batch_size", "train.gradient_accumulation_steps"}
        assert {problem.where for problem in problems} == expected


def test_18_an_accumulation_for_other_processes_is_suggested(home, stopped):
    manifest = json.loads((stopped / "manifest.json").read_text())
    manifest["parts"][-1]["world_size"] = 4
    (stopped / "manifest.json").write_text(json.dumps(manifest))
    [problem] = pipeline(home, stopped, resume=True).check()
    assert "set train.gradient_accumulation_steps=4, accept the change with" in problem.fix


@dataclass(frozen=True)
class Dividing(Plugin):
    """An engine whose checkpoints are of one number of processes."""

    @hookimpl
    def make_engine(self, config):
        return DividingEngine()


class DividingEngine(Engine):
    name = "dividing"
    reshards = False


@pytest.mark.parametrize("kind", ["engine", "stream"])
def test_18_a_state_of_one_number_of_processes_is_refused_for_another(home, stopped, monkeypatch, kind):
    manifest = json.loads((stopped / "manifest.json").read_text())
    plugins: list[Any] = []
    if kind == "stream":
        manifest["config"]["data"] |= {"streaming": True}
        options: dict[str, Any] = {"data": {"train": str(home / "rows.jsonl"), "streaming": True}}
    else:
        manifest["engine"]["name"] = "dividing"
        plugins, options = [Dividing()], {}
    (stopped / "manifest.json").write_text(json.dumps(manifest))
    for name, text in GROUP.items():
        monkeypatch.setenv(name, text)
    halved = {"per_device_train_batch_size": 1}
    allowed = ["world_size", "plugins", "data"]
    found = pipeline(home, stopped, halved, resume=True, plugins=plugins, allow_changes=allowed, **options).check()
    assert [problem.where for problem in found] == ["world_size"]
    why = {
        "engine": "the engine dividing has divided the optimizer among 1 processes",
        "stream": "each of 1 processes has its own position in the stream",
    }
    assert f"another kind: 1 processes -> 2, and {why[kind]}" in texts(found)


def test_18_the_state_of_another_engine_is_refused(home, stopped):
    found = pipeline(home, stopped, resume=True, plugins=[Dividing()], allow_changes=["plugins"]).check()
    assert [problem.where for problem in found] == ["plugins"]
    assert "another kind: the engine was ddp, and is dividing" in texts(found)


def test_18_changed_data_is_refused_before_weights_are_read(home, stopped, monkeypatch):
    def load_model(*_: Any) -> None:
        raise AssertionError("the weights are read")

    monkeypatch.setattr(Stages, "load_model", load_model)
    path = home / "rows.jsonl"
    before = path.read_text()
    try:
        for text, what in (
            (before.replace("one", "two"), "still has 8 rows, but other contents"),
            (before * 2, "has 16 rows, and had 8"),
        ):
            path.write_text(text)
            with pytest.raises(RunError, match=f"data.train: changed since the run began: the data {what}"):
                pipeline(home, stopped, resume=True).run()
            with pytest.raises(AssertionError, match="the weights are read"):
                pipeline(home, stopped, resume=True, allow_changes=["data.train"]).run()
    finally:
        path.write_text(before)
    with pytest.raises(AssertionError, match="the weights are read"):
        pipeline(home, stopped, resume=True).run()


def test_18_changed_base_weights_are_refused(home, tmp_path, monkeypatch):
    model = Path(shutil.copytree(home / "model", tmp_path / "model"))
    options: dict[str, Any] = {"model": str(model), "run": {"digest_weights": True}}
    pipeline(home, tmp_path / "run", {"max_steps": 2}, **options).run()
    monkeypatch.setattr(Stages, "load_model", lambda *_: pytest.fail("the weights are read"))
    path, more = model / "model.safetensors", {"max_steps": 4}
    weights = load_file(path)
    save_file({name: value + 1 for name, value in weights.items()}, path, {"format": "pt"})
    with pytest.raises(RunError, match=r"model.weights: changed since the run began: model.safetensors: digest \w+ ->"):
        pipeline(home, tmp_path / "run", more, resume=True, **options).run()
    save_file({name: value.bfloat16() for name, value in weights.items()}, path, {"format": "pt"})
    with pytest.raises(RunError, match=r"model.weights: changed since the run began: model.safetensors: size \d+ ->"):
        pipeline(home, tmp_path / "run", more, resume=True, model=str(model)).run()


def test_18_an_allowed_change_takes_effect_and_is_recorded(home, stopped, caplog):
    train = {"learning_rate": 1e-4, "weight_decay": 0.1, "max_steps": 6, "lr_scheduler_type": "linear"}
    allowed = ["train.learning_rate", "train.weight_decay", "train.lr_scheduler_type"]
    result = pipeline(home, stopped, train, resume="auto", allow_changes=allowed).run()
    assert result.status == "trained"
    assert rates(stopped)[3] == pytest.approx(1e-4 * 4 / 6)
    assert "train.learning_rate has changed since the run began, which is allowed: 0.001 -> 0.0001" in caplog.text
    assert "the schedule linear depends on the number of steps" in caplog.text
    first, second = manifest(stopped)["parts"]
    assert (first["status"], second["from_step"], second["to_step"], second["status"]) == ("interrupted", 2, 6, "done")
    assert {*second["changes"]} == {*allowed}
    assert second["world_size"] == 1
    assert "torch" in second["versions"]


def test_18_resume_auto_begins_continues_or_finds_the_run_finished(home, tmp_path, caplog):
    output = tmp_path / "run"
    few = {"max_steps": 2}
    statuses = [pipeline(home, output, train, resume="auto").run().status for train in (few, few, TRAIN)]
    assert statuses == ["trained", "finished", "trained"]
    assert [part["from_step"] for part in manifest(output)["parts"]] == [0, 2]
    weights, expected = load_file(output / "model.safetensors"), load_file(home / "run" / "model.safetensors")
    assert all(value.equal(expected[name]) for name, value in weights.items())


def test_18_resume_takes_auto_and_no_other_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def error(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["run", *arguments])
        return str(done.exception)

    assert "no.yaml: no such file" in error("--resume", "no.yaml")
    for auto in (("--resume", "auto"), ("--resume=auto",)):
        assert "nowhere.jsonl" in error(*auto, "-m", "demo", "-d", "nowhere.jsonl", "-o", "run", "train.use_cpu=true")
    assert "there is no run to resume" in error("--resume", "-m", "demo", "-d", "demo", "-o", "run")
    assert not (tmp_path / "run").exists()


def test_18_the_page_lists_the_fields_as_they_are_classified():
    page = (Path(__file__).parents[2] / "docs" / "resuming.md").read_text(encoding="utf-8")
    listed = [
        {*re.findall(r"`(\w+)`", page.partition(f"**{word}**")[2].partition(end)[0])}
        for word, end in (("Compared", ".\n"), ("May grow", "."), ("Free", ".\n"))
    ]
    assert listed == [{*FIXED}, {*LENGTH}, {*FREE}]


def contend(directory: Path, turns: int) -> int:
    """How often this process held the lock; a second holder at the same time is an error."""
    held = 0
    for _ in range(turns):
        with suppress(RunError), lock.locked(directory):
            os.close(os.open(directory / "inside", os.O_CREAT | os.O_EXCL))
            (directory / "inside").unlink()
            held += 1
    return held


@pytest.mark.slow
def test_07_many_processes_never_hold_a_lock_together(tmp_path):
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        turns = pool.starmap(contend, [(tmp_path / "new" / "run", 200)] * 4)
    assert sum(turns) > 0
    assert contents(tmp_path) == {}


def test_07_a_run_without_a_directory_takes_a_free_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sftkit.run.directory.datetime", SimpleNamespace(now=lambda: datetime(2026, 1, 2, 3, 4, 5)))
    for expected in ("20260102-030405", "20260102-030405-2", "20260102-030405-3"):
        name = default_directory(ConfigSource(), False)
        assert name == f"runs/{expected}"
        Path(name).mkdir(parents=True)
