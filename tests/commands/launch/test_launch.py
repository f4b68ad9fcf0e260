"""The command launch: how its arguments are read, and what the target local starts."""

from __future__ import annotations

import json
import re
import shlex
import sys

import pytest
import typer

from sftkit.cli import app
from sftkit.cli.completion import candidates
from sftkit_commands.launch import local
from sftkit_commands.launch.job import Job, job_name
from sftkit_commands.launch.targets import option_fields, read_target


def command_of(printed: str) -> list[str]:
    return shlex.split(printed.splitlines()[-1])


@pytest.fixture
def cpu(monkeypatch):
    """A machine of eight cores without a GPU."""
    monkeypatch.setattr(local, "has_gpu", lambda: False)
    monkeypatch.setattr(local, "processors", lambda: 8)


@pytest.fixture
def gpus(monkeypatch):
    """A machine of 32 cores with four GPUs."""
    import torch

    monkeypatch.setattr(local, "has_gpu", lambda: True)
    monkeypatch.setattr(local, "processors", lambda: 32)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)


def test_all_gpus_are_used_and_share_the_cores(launch, gpus, caplog):
    code, printed = launch("--dry-run", "run", "sft.yaml", "-p", "packing", "--resume")
    assert code == 0
    assert "OMP_NUM_THREADS=8: 32 cores for 4 processes" in caplog.text
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    run = ["-m", "sftkit", "run", "sft.yaml", "-p", "packing", "--resume"]
    assert command_of(printed) == ["OMP_NUM_THREADS=8", *torchrun, *run]


def test_more_processes_than_gpus_are_an_error(launch, gpus):
    code, printed = launch("--nproc", "5", "--dry-run", "run", "sft.yaml")
    assert code == 2
    assert "--nproc 5: this machine shows 4 GPUs -> use --nproc 4" in printed


def test_without_a_gpu_there_is_one_process_and_advice(launch, cpu, caplog):
    code, printed = launch("--dry-run", "run", "sft.yaml")
    assert code == 0
    assert "this machine has no GPU: one process; --nproc N starts N on the CPU" in caplog.text
    assert command_of(printed) == [sys.executable, "-m", "sftkit", "run", "sft.yaml"]


def test_several_processes_on_the_cpu_get_the_settings_they_need(launch, cpu):
    _, printed = launch("--dry-run", "--nproc", "2", "run", "sft.yaml")
    assert command_of(printed)[-2:] == ["train.use_cpu=true", "train.ddp_backend=gloo"]
    _, printed = launch("--dry-run", "--nproc", "2", "run", "sft.yaml", "train.use_cpu=true", "train.ddp_backend=mpi")
    assert "gloo" not in printed


def test_a_number_of_threads_that_is_set_stays(launch, cpu, monkeypatch):
    _, printed = launch("--dry-run", "--nproc", "2", "--env", "OMP_NUM_THREADS=3", "run", "sft.yaml")
    assert command_of(printed)[0] == "OMP_NUM_THREADS=3"
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    _, printed = launch("--dry-run", "--nproc", "2", "run", "sft.yaml")
    assert command_of(printed)[0] == sys.executable


def test_nodes_meet_at_the_endpoint(launch, cpu):
    options = "local:endpoint=first,node_rank=1,id=a,wait=60"
    code, printed = launch("--dry-run", "--nproc", "2", "--nnodes", "3", "--on", options, "run", "sft.yaml")
    assert code == 0
    text = " ".join(command_of(printed))
    assert "--nnodes 3 --rdzv-backend c10d --rdzv-endpoint first:29500 --rdzv-id a" in text
    assert "--rdzv-conf join_timeout=60,read_timeout=60,is_host=false" in text


def test_what_is_started_again_has_a_directory_and_resumes(launch, cpu):
    call = ["--dry-run", "--nproc", "2", "--max-restarts", "3", "--name", "My Run"]
    code, printed = launch(*call, "run", "sft.yaml")
    assert code == 0
    command = command_of(printed)
    assert command[command.index("--max-restarts") + 1] == "3"
    assert command[-6:-2] == ["--output", "runs/my-run", "--resume", "auto"]
    code, printed = launch(*call, "run", "sft.yaml", "--overwrite")
    assert (code, "--overwrite would remove the run" in printed) == (2, True)


def test_the_run_directory_of_a_file_or_an_override_is_kept(launch, cpu, tmp_path):
    (tmp_path / "other.yaml").write_text("train: {output_dir: a}\n")
    call = ["--dry-run", "--max-restarts", "1", "run"]
    _, printed = launch(*call, "other.yaml")
    assert "--output" not in printed
    _, printed = launch(*call, "sft.yaml", "train.output_dir=b", "--resume")
    assert command_of(printed)[-2:] == ["--resume", "auto"]
    assert "--output" not in printed


def test_json_is_one_object_and_is_passed_on(launch, cpu):
    code, printed = launch("--json", "--dry-run", "--nproc", "2", "-q", "run", "sft.yaml")
    facts = json.loads(printed)
    assert (code, facts["nproc"], facts["target"], facts["dry_run"]) == (0, 2, "local", True)
    assert "--json" in facts["command"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "no command to start -> name one, as in: sftkit launch run sft.yaml"),
        (["rnu", "sft.yaml"], "did you mean 'run'?"),
        (["sft.yaml"], "as in: sftkit launch run sft.yaml"),
        (["launch", "run"], "there is no command 'launch' to start"),
        (["--on", "slrm", "run"], "did you mean 'slurm'?"),
        (["--on", "local:endpont=a", "run"], "did you mean 'endpoint'?"),
        (["--on", "local:wait=soon", "run"], "--on local, wait: Input should be a valid integer"),
        (["--on", "local:wait", "run"], "'wait' is not of the form key=value"),
        (["--on", "local:endpoint=a", "run"], "add --nnodes M"),
        (["--on", "local:endpoint=a:b", "--nnodes", "2", "run"], "'a:b' is not HOST:PORT"),
        (["--on", "local:endpoint=a,node_rank=2", "--nnodes", "2", "run"], "2 is not below --nnodes 2"),
        (["--nnodes", "2", "run"], "the nodes cannot find each other"),
        (["--nproc", "0", "run"], "--nproc: must be at least 1, not 0"),
        (["--nnodes", "0", "--max-restarts", "-1", "run"], "--max-restarts: must be at least 0, not -1"),
        (["--nproc", "2", "check", "sft.yaml"], "`sftkit check` works in one process"),
        (["--submit", "run"], "for targets that write a file"),
        (["--env", "A", "run"], "'A' is not of the form NAME=VALUE"),
        (["run", "sft.yaml", "--ouptut", "a"], "No such option: --ouptut"),
        (["run", "missing.yaml"], "missing.yaml"),
    ],
)
def test_bad_input_is_an_error_with_advice(launch, cpu, arguments, problem):
    code, printed = launch(*arguments)
    assert code == 2
    assert problem in printed


@pytest.mark.parametrize("width", ["80", "140"])
def test_options_of_a_target_are_listed_and_fit(launch, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)
    for name in ("local", "slurm", "kubernetes", "skypilot"):
        code, printed = launch("--on", f"{name}:help")
        assert code == 0
        assert all(field.name in printed for field in option_fields(read_target(name).module))
        assert max(len(line) for line in printed.splitlines() if "│" in line) <= int(width)


def test_help_shows_that_options_come_first(launch):
    code, printed = launch("--help")
    assert code == 0
    assert "sftkit launch --nproc 2 run sft.yaml -p packing" in printed
    assert launch("run", "--help")[1].startswith("usage: sftkit run ")


@pytest.mark.parametrize(
    ("words", "incomplete", "found"),
    [
        (["launch"], "ru", "run"),
        (["launch", "--on"], "sl", "slurm"),
        (["launch", "--on"], "local:end", "local:endpoint="),
        (["launch"], "--nn", "--nnodes"),
        (["launch", "--nproc", "2", "run"], "train.learning_r", "train.learning_rate="),
        (["launch", "run"], "--resu", "--resume"),
        (["launch", "run", "-p"], "pack", "packing"),
    ],
)
def test_the_shell_completes_launch_and_the_command_after_it(words, incomplete, found):
    names = [name for name, _ in candidates(typer.main.get_command(app), words, incomplete)]
    assert found in names
    assert all(name.startswith(incomplete) for name in names)


def test_names_of_jobs_are_valid_everywhere():
    assert job_name("My Run_2.yaml") == "my-run-2-yaml"
    assert job_name("7b") == "run-7b"
    assert job_name("...") == "run"
    assert len(job_name("a" * 60)) == 40


def test_the_same_launch_continues_the_same_run():
    job = Job(("run", "a.yaml", "--resume"), name="a", resume="newest")
    again = job.restartable()
    assert again.arguments == ("run", "a.yaml", "--output", "runs/a", "--resume", "auto")
    assert again.restartable() == again
    assert Job(("check", "a.yaml")).restartable().arguments == ("check", "a.yaml")


@pytest.mark.parametrize("name", ["local", "slurm", "kubernetes", "skypilot"])
def test_the_page_names_every_option_of_a_target(root, name):
    page = (root / "docs/scaling-out.md").read_text(encoding="utf-8")
    for field in option_fields(read_target(name).module):
        assert re.search(rf"\b{field.name}\b", page), field.name
