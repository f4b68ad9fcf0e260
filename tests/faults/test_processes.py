"""Rows 20 and 21 of the table of faults: unequal shares of rows, and processes that fail or stall."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from sftkit.run.place import agreed_place
from sftkit.testing.processes import start_group

DATA = {
    "prepared": {},
    "packed": {"plugins": {"packing": {}}},
    "stream": {"streaming": True, "train": {"max_steps": 5, "num_train_epochs": 1}},
    "accumulated": {"train": {"gradient_accumulation_steps": 2}},
}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] * (kind not in ("prepared", "stream"))) for kind in DATA]
)
def test_20_processes_with_unequal_shares_take_equal_steps_and_end(processes, configure, tmp_path, kind):
    """Seven rows, and five to evaluate on, for two processes with batches of two."""
    rows = [{"prompt": f"What is {n}?", "completion": f" {n} is {'one more ' * (n % 4)}"} for n in range(7)]
    (tmp_path / "held_out.jsonl").write_text("".join(json.dumps(row | {"prompt": "?"}) + "\n" for row in rows[:5]))
    chosen = DATA[kind]
    train = {"max_steps": -1, "num_train_epochs": 3, "save_steps": 3, "ddp_backend": "gloo", **chosen.get("train", {})}
    config = configure(rows=rows, train={**train, "eval_strategy": "epoch"}, plugins=chosen.get("plugins", {}))
    options = ["data.eval=held_out.jsonl", *(["data.streaming=true", "data.window=4"] * chosen.get("streaming", False))]
    arguments = ["run", str(config), "-o", "run", *options]
    group = start_group(processes, arguments, cwd=tmp_path, printed=tmp_path / "printed")
    assert group.wait() == [0, 0], group.outputs
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "done"
    assert manifest["metrics"]["eval_loss"] > 0
    states = [json.loads(path.read_text()) for path in (tmp_path / "run").glob("checkpoint-*/trainer_state.json")]
    assert states[0]["max_steps"] == {"prepared": 6, "packed": 3, "stream": 5, "accumulated": 3}[kind]


def test_a_group_that_hangs_is_killed_and_its_lines_are_shown(processes, tmp_path):
    (tmp_path / "hanging.py").write_text("import time\n\nprint('hangs', flush=True)\ntime.sleep(1000)\n")
    group = start_group(processes, ["run", "-p", "hanging:Any"], cwd=tmp_path, printed=tmp_path / "printed")
    for command in group.commands:
        command.wait_until(lambda command=command: "hangs" in command.output)
    with pytest.raises(AssertionError, match="hangs"):
        group.wait(0)
    assert not any(command.running for command in group.commands)


@pytest.fixture
def group(processes, configure, tmp_path):
    """Starts a run of two processes with the given arguments; what still runs at the end is killed."""
    shutil.copy(Path(__file__).with_name("poison.py"), tmp_path)
    begun = []

    def begin(*options, config=None, output=("-o", "out"), **settings):
        arguments = ["run", str(config or configure()), *output, *options]
        places = {"cwd": tmp_path, "printed": tmp_path / f"printed-{len(begun)}", **settings}
        begun.append(start_group(processes, arguments, **places))
        return begun[-1]

    yield begin
    for each in begun:
        each.end()


def reason(directory):
    return json.loads((directory / "out" / "manifest.json").read_text())["error"]


FAULTS = {
    "raise": (1, "process 1 failed: ValueError: a fault of a plugin"),
    "stall": (3, "process 1 has done nothing for"),
    "SIGSTOP": (3, "process 1 does not respond"),
    "SIGKILL": (3, "process 1 does not respond: it was killed"),
}
SLOW = ("raise", "stall", "SIGSTOP")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["SIGKILL", *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)])
def test_21_a_process_that_fails_or_stalls_ends_all_with_one_message(group, tmp_path, kind):
    code, text = FAULTS[kind]
    timeout = "8s" if kind in ("stall", "SIGSTOP") else "10m"
    run = group(f"run.timeout={timeout}", "-p", f"poison:Fault:kind={kind},process=1")
    codes = [run.commands[0].wait()]
    if kind == "SIGSTOP":
        run.commands[1].end()
    codes.append(run.commands[1].wait())
    assert codes == [code, {"SIGKILL": -9, "SIGSTOP": -9}.get(kind, code)], run.outputs
    assert text in reason(tmp_path)
    shown = [line for output in run.outputs for line in output.splitlines() if "error:" in line.lower()]
    assert len(shown) == 1, run.outputs


@pytest.mark.slow
def test_21_a_process_that_computes_for_longer_than_the_timeout_goes_on(group):
    run = group("run.timeout=4s", "-p", "poison:Fault:kind=busy,process=1")
    assert run.wait() == [0, 0], run.outputs


def test_21_the_same_error_in_all_processes_is_shown_once(group, tmp_path):
    run = group("train.learning_rate=fast")
    assert run.wait() == [2, 2]
    assert "learning_rate" in run.outputs[0]
    assert not run.outputs[1]


def test_21_an_error_before_the_run_ends_the_others(group, processes, configure, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    config = configure().rename(tmp_path / "here.yaml").name
    run = group(config=config, cwd=[tmp_path, elsewhere])
    assert run.wait() == [2, 2], run.outputs
    assert "here.yaml" in run.outputs[1]
    assert "error" not in run.outputs[0]


@pytest.mark.slow
def test_21_a_restart_by_torchrun_continues_as_if_nothing_had_happened(group, configure, tmp_path):
    """The directory is named by the time, and torchrun kills the process that is left."""
    config = configure()
    options = ["run", str(config), "-p", "poison:Fault:kind=SIGKILL,process=1,step=6"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max-restarts", "1"]
    command = [sys.executable, *launcher, "-m", "sftkit", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resuming from" in done.stderr
    [directory] = (tmp_path / "runs").iterdir()
    parts = json.loads((directory / "manifest.json").read_text())["parts"]
    assert [(part["from_step"], part["to_step"], part["status"]) for part in parts][1:] == [(4, 12, "done")]
    undisturbed = group(config=config)
    assert undisturbed.wait() == [0, 0], undisturbed.outputs
    restarted, whole = (load_file(path / "model.safetensors") for path in (directory, tmp_path / "out"))
    assert all(restarted[name].equal(whole[name]) for name in whole)


@pytest.fixture
def two_nodes(tmp_path):
    """Working directories of two machines that share no file system."""
    places = [tmp_path / "first", tmp_path / "second"]
    for place in places:
        place.mkdir()
        shutil.copy(Path(__file__).with_name("poison.py"), place)
    return places


@pytest.mark.slow
def test_machines_without_a_shared_directory_train_but_do_not_resume(group, configure, two_nodes):
    config = configure(train={"max_steps": 4})
    run = group(config=config, cwd=two_nodes)
    assert run.wait() == [0, 0], run.outputs
    assert "not all machines see the run directory" in run.outputs[0]
    first, second = (place / "out" for place in two_nodes)
    assert (first / "model.safetensors").exists()
    assert not second.exists()
    resumed = group("--resume", "train.max_steps=8", config=config, cwd=two_nodes)
    assert resumed.wait() == [2, 2], resumed.outputs
    assert "machines that do not see this directory" in resumed.outputs[0]
    assert "error" not in resumed.outputs[1]


def test_the_main_process_names_the_directory_of_all():
    class Second:
        is_main = False

        def from_main(self, name, text):
            return '["runs/named-by-the-first", false]'

    assert agreed_place(Second(), Path("runs/a-second-later"), named=False)[0] == Path("runs/named-by-the-first")
    assert agreed_place(Second(), Path("out"), named=True)[0] == Path("out")


@pytest.mark.slow
@pytest.mark.parametrize("to", [[1], [0, 1]], ids=["one", "all"])
def test_08_a_signal_to_one_or_all_processes_saves_once_and_ends_all(group, configure, tmp_path, to):
    run = group(config=configure(train={"max_steps": 10_000, "save_steps": 10_000}))
    run.commands[0].wait_until(lambda: (tmp_path / "out" / "log.jsonl").exists())
    for number in to:
        run.commands[number].send(signal.SIGTERM)
    assert run.wait() == [143, 143], run.outputs
    assert "is saved" in reason(tmp_path)
    assert len(list((tmp_path / "out").glob("checkpoint-*"))) == 1
    assert sum("interrupted: SIGTERM" in output for output in run.outputs) == 1
