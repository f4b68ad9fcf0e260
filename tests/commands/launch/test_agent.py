"""torchrun's agent in this process: exit codes, signals and restarts, with workers that are shell scripts."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time

import pytest

from sftkit.errors import ConfigError, TrainingError
from sftkit_commands.launch import agent, local
from sftkit_commands.launch.agent import leaves_signals, run_agent, run_alone
from sftkit_commands.launch.job import Job

WITHIN_30_SECONDS = pytest.mark.skipif(not leaves_signals(), reason="torchrun ends processes by its own rules")


def workers(script: str, *options: str) -> list[str]:
    """Arguments of torchrun for two processes of a script."""
    return ["--standalone", "--nproc-per-node", "2", *options, "--no-python", "bash", "-c", script]


@pytest.fixture
def send(tmp_path):
    """Sends this process a signal as soon as there are two files that end with ``.ready``."""

    def wait(number: int) -> None:
        until = time.monotonic() + 60
        while len(list(tmp_path.glob("*.ready"))) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    return lambda number: threading.Thread(target=wait, args=(number,), daemon=True).start()


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit $((RANK * 3))", 3), ("exit $((RANK * 2))", 2)])
def test_the_exit_code_is_that_of_the_process_that_failed(script, code):
    assert run_agent(workers(script)) == code


@pytest.mark.parametrize(
    ("script", "what"),
    [
        ("[ $RANK = 0 ] || kill -9 $BASHPID; sleep 60", "process 1 was killed by SIGKILL"),
        ("exit 7", "with exit code 7"),
    ],
)
def test_a_process_that_gives_no_reason_is_a_failed_training(script, what):
    with pytest.raises(TrainingError, match=what):
        run_agent(workers(script))


@WITHIN_30_SECONDS
def test_a_signal_reaches_every_process_and_waits_for_the_last(tmp_path, send):
    script = f"trap 'sleep $RANK; touch {tmp_path}/$RANK.saved; exit 143' TERM; touch {tmp_path}/$RANK.ready; "
    script += "while true; do sleep 0.1; done"
    send(signal.SIGTERM)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        run_agent(workers(script, "--max-restarts", "3"))
    assert ended.value.code == 143
    assert sorted(path.name for path in tmp_path.glob("*.saved")) == ["0.saved", "1.saved"]
    assert signal.getsignal(signal.SIGTERM) == before


@WITHIN_30_SECONDS
@pytest.mark.slow
def test_processes_that_finish_at_a_signal_have_succeeded(tmp_path, send):
    script = f"trap 'exit 0' TERM; touch {tmp_path}/$RANK.ready; while true; do sleep 0.1; done"
    send(signal.SIGTERM)
    assert run_agent(workers(script)) == 0


@pytest.mark.slow
def test_a_signal_that_only_saves_ends_nothing(tmp_path, send):
    script = f"trap 'touch {tmp_path}/$RANK.saved' USR1; touch {tmp_path}/$RANK.ready; "
    script += f"until [ -f {tmp_path}/$RANK.saved ]; do sleep 0.1; done"
    send(signal.SIGUSR1)
    assert run_agent(workers(script)) == 0


def test_what_fails_is_started_again(tmp_path):
    script = f"[ -f {tmp_path}/$RANK.tried ] && exit 0; touch {tmp_path}/$RANK.tried; exit 3"
    assert run_agent(workers(script, "--max-restarts", "1")) == 0


@pytest.mark.slow
def test_a_node_that_finds_no_other_is_an_error():
    missing = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--rdzv-id", "a"]
    missing += ["--rdzv-conf", "join_timeout=1,last_call_timeout=1", "--no-python", "true"]
    with pytest.raises(ConfigError, match=r"do not find each other.*check that every node has started"):
        run_agent(missing)


def test_one_process_needs_no_torchrun(tmp_path, send):
    assert run_alone(["bash", "-c", "exit 3"]) == 3
    (tmp_path / "other.ready").touch()
    send(signal.SIGTERM)
    script = f"trap 'exit 143' TERM; touch {tmp_path}/a.ready; while true; do sleep 0.1; done"
    assert run_alone(["bash", "-c", script]) == 143


def test_arguments_reach_the_command_unchanged(tmp_path, monkeypatch):
    """torchrun replaces macros such as ${local_rank}, and $$ by $."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "has_gpu", lambda: False)
    given = ("run", "a=$$b", "c=${local_rank}", "d=${HOME}$", "e f")
    command = list(local.plan(Job(given, nproc=2), local.Options()).facts["command"])
    start = command.index("-m", 2)
    program = ["--no-python", sys.executable, "-c", "import sys; print(sys.argv[1:], file=open('seen', 'w'))"]
    assert run_agent([*command[3:start], *program, *command[start + 2 :]]) == 0
    expected = [*given, "train.use_cpu=true", "train.ddp_backend=gloo"]
    assert (tmp_path / "seen").read_text() == f"{expected}\n"


@pytest.mark.slow
def test_a_run_in_two_processes_prints_once_and_resumes_where_it_was(fresh_cli, tmp_path):
    options = ["run", "-o", "a", "-p", "no:samples", "train.save_strategy=no", "train.eval_strategy=no"]
    done = fresh_cli("launch", "--json", "--nproc", "2", *options, "train.max_steps=2", cwd=tmp_path)
    assert json.loads(done.stdout)["status"] == "trained"
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert [part["world_size"] for part in manifest["parts"]] == [2]
    failed = fresh_cli("launch", "--nproc", "2", *options, "train.max_stops=2", cwd=tmp_path, code=2)
    assert "did you mean" in failed.stderr
    assert "torch.distributed" not in failed.stderr


@WITHIN_30_SECONDS
def test_a_second_signal_ends_processes_that_hang(tmp_path, send, monkeypatch):
    monkeypatch.setattr(agent, "COPY_SECONDS", 0.0)
    script = f"trap 'touch {tmp_path}/$RANK.stuck' TERM; touch {tmp_path}/$RANK.ready; while true; do sleep 0.1; done"

    def again() -> None:
        while len(list(tmp_path.glob("*.stuck"))) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    send(signal.SIGTERM)
    threading.Thread(target=again, daemon=True).start()
    with pytest.raises(SystemExit) as ended:
        run_agent(workers(script))
    assert ended.value.code == 128 + signal.SIGKILL
