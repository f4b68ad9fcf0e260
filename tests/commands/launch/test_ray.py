"""``sftkit launch --on ray``: what it will do, its errors, and what its workers do, without a cluster."""

from __future__ import annotations

import json
import pickle
import signal
import socket
import threading
import time
from importlib import metadata
from types import SimpleNamespace

import pytest
from transformers import TrainerCallback

from sftkit.api import ConfigError, Interrupted, Problem, TrainingError, interrupt_runs, run_command

ray = pytest.importorskip("ray")


@pytest.fixture
def on_ray(in_process, monkeypatch, tmp_path):
    """Calls ``sftkit launch --on ray`` in an empty directory; returns the exit code and what was printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "sft.yaml").write_text("model: demo\n")

    def call(*arguments, options=""):
        return in_process("launch", "--on", f"ray{':' * bool(options)}{options}", *arguments)

    return call


@pytest.fixture
def facts(on_ray):
    """What a dry run says as JSON."""

    def call(*arguments, options=""):
        code, printed = on_ray("--dry-run", "--json", *arguments, options=options)
        assert code == 0, printed
        return json.loads(next(line for line in printed.splitlines() if line.startswith("{")))

    return call


def test_a_dry_run_shows_processes_resources_and_commands(on_ray, tmp_path):
    code, printed = on_ray("--dry-run", "--nnodes", "2", "run", "sft.yaml", "-o", "out", options="cpus=4,gpu=true")
    assert code == 0
    output = tmp_path / "out"
    assert "2, placed by STRICT_SPREAD, each with CPU: 4.0, GPU: 1" in printed
    assert f"sftkit run sft.yaml -o out --output {output}\n" in printed
    assert f"at most 3 times: sftkit run sft.yaml -o out --output {output} --resume auto" in printed
    assert not output.exists()


@pytest.mark.parametrize(
    ("nodes", "processes", "placement"),
    [("1", "8", "STRICT_PACK"), ("4", "1", "STRICT_SPREAD"), ("4", "8", "SPREAD")],
)
def test_processes_are_placed_by_node(facts, nodes, processes, placement):
    found = facts("--nnodes", nodes, "--nproc", processes, "run", "sft.yaml")
    assert (found["placement"], found["workers"]) == (placement, int(nodes) * int(processes))


def test_a_restart_resumes_and_does_not_overwrite(facts):
    found = facts("--max-restarts", "5", "run", "sft.yaml", "-o", "/out", "--resume", "auto", "--overwrite")
    assert found["restarted"] == "sftkit run sft.yaml -o /out --json --resume auto"
    assert found["restarts"] == 5


def test_a_run_on_the_cpu_takes_no_gpu(facts, on_ray):
    assert facts("run", "sft.yaml", "train.use_cpu=true")["resources"] == {"CPU": 1.0}
    assert facts("run", "sft.yaml")["resources"]["GPU"] == "1 if the cluster has any"
    code, printed = on_ray("run", "sft.yaml", "train.use_cpu=true", options="gpu=true")
    assert code == 2
    assert "train.use_cpu: the run uses the CPU" in printed


def test_a_job_is_the_same_launch_within_the_cluster(facts, tmp_path):
    head = "address=http://head:8265,cpus=2"
    found = facts("--nnodes", "2", "--nproc", "4", "run", "sft.yaml", "-o", "/out", options=head)
    inside = "sftkit launch --on ray:cpus=2,wait=600 --nnodes 2 --nproc 4 run sft.yaml -o /out"
    assert found["entry_point"] == inside
    assert found["working_dir"] == str(tmp_path)


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ("address=ray://head:10001", ["run"], "Ray Train does not run through Ray Client"),
        ("address=head", ["run"], "'head' is not the address of a cluster -> give auto, HOST:6379 or http://HOST:8265"),
        ("address=http://head:8265", ["run", "-o", "out"], "out: the run directory must be an absolute path"),
        ("", ["doctor"], "launches `run` and `prepare`, not `sftkit doctor`"),
        ("cpus=0", ["run"], "--on ray, cpus"),
        ("adress=auto", ["run"], "did you mean 'address'?"),
    ],
)
def test_what_ray_cannot_do_is_an_error(on_ray, options, arguments, message):
    code, printed = on_ray(*arguments, options=options)
    assert code == 2
    assert message in printed


def test_a_missing_package_is_an_error_with_the_command_that_installs_it(on_ray, monkeypatch):
    known = metadata.version

    def version(name):
        if name == "ray":
            raise metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(metadata, "version", version)
    code, printed = on_ray("run", "sft.yaml")
    assert code == 2
    assert 'needs the package ray, which is not installed -> pip install "ray[train]>=2.50"' in printed


def test_an_address_where_nothing_listens_is_an_error(on_ray):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        code, printed = on_ray("run", "sft.yaml", options=f"address={address}")
        assert code == 2
        assert f"no Ray cluster at {address}: " in printed
        code, printed = on_ray("run", "sft.yaml", "-o", "/out", options=f"address=http://{address}")
    assert code == 2
    assert f"no Ray cluster at http://{address}: " in printed


class Client:
    """A cluster's job server, whose job ends with a code or when it is stopped."""

    def __init__(self, code=None):
        self.code, self.looks, self.stopped = code, 0, False

    def get_job_status(self, number):
        self.looks += 1
        if self.code is None and self.looks == 2:
            signal.raise_signal(signal.SIGINT)
        return SimpleNamespace(is_terminal=lambda: self.stopped or (self.code is not None and self.looks > 1))

    def get_job_logs(self, number):
        return "first\nsecond\n"[: 6 * self.looks + 1]

    def stop_job(self, number):
        self.stopped = True

    def get_job_info(self, number):
        return SimpleNamespace(driver_exit_code=self.code, message="")


def test_a_job_is_followed_to_its_exit_code(monkeypatch, capsys):
    from sftkit_commands.launch import ray_jobs

    monkeypatch.setattr(ray_jobs, "LOOK_SECONDS", 0)
    assert ray_jobs._follow(Client(code=3), "job") == 3
    assert capsys.readouterr().out == "first\nsecond\n"


def test_ctrl_c_stops_a_job(monkeypatch):
    from sftkit_commands.launch import ray_jobs

    monkeypatch.setattr(ray_jobs, "LOOK_SECONDS", 0)
    client = Client()
    with pytest.raises(Interrupted, match="SIGINT") as ended:
        ray_jobs._follow(client, "job")
    assert (ended.value.exit_code, client.stopped) == (130, True)


class Remote:
    """An object whose methods are called as those of a Ray actor."""

    def __init__(self, target):
        self.target = target

    def __getattr__(self, name):
        return SimpleNamespace(remote=getattr(self.target, name))


@pytest.fixture
def worker(monkeypatch, tmp_path):
    """Does what a worker does with arguments of ``sftkit run``; returns the channel and the function."""
    from sftkit_commands.launch import ray_channel, ray_worker

    channel, reports = ray_channel.Channel(), []
    monkeypatch.setattr(ray, "get", lambda value: value)
    monkeypatch.setattr(ray_worker, "report", lambda *values: reports.append(values))
    monkeypatch.setattr(ray_worker, "STOP_SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)

    def work(first, again=(), cwd=str(tmp_path)):
        output = first[first.index("-o") + 1]
        config = {"first": first, "again": again, "overwrites": False, "output": output, "cwd": cwd}
        ray_worker.work({**config, "channel": Remote(channel)})
        return reports

    return channel, work


RUN = ["train.use_cpu=true", "train.eval_strategy=no", "train.eval_on_start=false", "data.eval=null", "evaluate=null"]
RUN += ["-p", "no:samples", "-o", "out"]


def test_a_worker_passes_on_lines_and_checkpoints_and_continues_when_it_is_started_again(worker, tmp_path):
    channel, work = worker
    first = [*RUN, "train.max_steps=2", "train.save_strategy=steps", "train.save_steps=1"]
    reports = work(first)
    assert [path.name for _, path in reports] == ["checkpoint-1", "checkpoint-2", "out"]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert reports[-1][0] == manifest["metrics"]
    printed, starts, begun, training = channel.read()
    assert "saved to out" in "".join(text for name, text in printed if name == "stdout")
    assert (starts, begun, training, channel.read()[0]) == (1, True, True, [])
    work(["misspelt=1", "-o", "out"], again=[*first, "--resume", "auto"])
    assert "was finished already" in "".join(text for _, text in channel.read()[0])


def test_an_error_that_a_restart_would_not_change_ends_the_run(worker):
    from sftkit_commands.launch.ray_channel import Restarts, RunEnded

    channel, work = worker
    with pytest.raises(RunEnded) as ended:
        work([*RUN, "train.max_stps=2"])
    [(number, final, error)] = channel.errors()
    assert (number, final, type(error), error.exit_code) == (0, True, ConfigError, 2)
    restarts = Restarts(Remote(channel), limit=1)
    with pytest.raises(RunEnded):
        restarts.after_exception(None, {0: ended.value})
    channel.read()
    restarts.after_exception(None, {0: TrainingError("waits"), 1: RuntimeError("The actor died.\nmore")})
    assert channel.read()[0] == [
        ("stderr", "process 1 failed: The actor died.\nall start again, and the run continues (restart 1 of 1)\n")
    ]
    restarts.after_exception(None, {1: RuntimeError("The actor died.")})
    assert channel.read()[0] == []


def test_a_directory_that_a_node_lacks_is_an_error(worker):
    from sftkit_commands.launch.ray_channel import RunEnded

    with pytest.raises(RunEnded, match=r"/nowhere: the node .* has no such directory"):
        worker[1](RUN, cwd="/nowhere")


def test_a_failure_by_another_worker_ends_the_run_only_if_that_one_says_so(worker, monkeypatch):
    from sftkit_commands.launch import ray_worker
    from sftkit_commands.launch.ray_channel import RunEnded

    def run(arguments, callbacks):
        raise TrainingError(Problem("process 1 does not respond", "training")) from RuntimeError("gloo")

    channel, work = worker
    monkeypatch.setattr(ray_worker, "run_command", run)
    monkeypatch.setattr(ray_worker, "VERDICT_SECONDS", 0.01)
    with pytest.raises(TrainingError):
        work(RUN)
    assert [final for _, final, _ in channel.errors()] == [False]
    monkeypatch.setattr(channel, "start", lambda: False)  # the other one has failed in the same start
    channel.fail(1, True, ConfigError("wrong"))
    with pytest.raises(RunEnded):
        work(RUN)
    assert str(channel.errors()[0][2]) == "wrong"


def test_a_stop_that_the_launch_asks_for_saves_the_run_of_a_thread(worker, tmp_path):
    channel, work = worker
    ended = []

    def train():
        try:
            work([*RUN, "train.max_steps=100000"])
        except Exception as error:
            ended.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    deadline = time.monotonic() + 120
    while not channel.training and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.01)
    channel.stop(signal.SIGINT)
    thread.join()
    [(_, final, error)] = channel.errors()
    assert (final, error.exit_code, error.directory.name) == (True, 130, "out")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.exit_code, again.directory) == (str(error), 130, error.directory)
    assert "is saved" in str(error)
    assert [*(tmp_path / "out").glob("checkpoint-*")]


def test_a_run_within_a_process_takes_callbacks_and_raises_its_errors(monkeypatch, tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            interrupt_runs(signal.SIGTERM)

    monkeypatch.chdir(tmp_path)
    with pytest.raises(Interrupted, match="SIGTERM, after step 1") as ended:
        run_command(["run", *RUN, "train.max_steps=9"], callbacks=[Stop()])
    assert ended.value.exit_code == 143
    interrupt_runs(signal.SIGTERM)  # there is none
