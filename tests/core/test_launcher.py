"""What launchers say in the environment: what makes sense is accepted, anything else is an error with the command."""

from __future__ import annotations

import pytest

from sftkit.run.launcher import launch_problems

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
TORCHRUN |= {"MASTER_ADDR": "node", "MASTER_PORT": "29500", "GROUP_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "none"}
ACCEPTED = {
    "nothing": {},
    "torchrun": TORCHRUN,
    "one process of torchrun": {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"},
    "one task of an interactive Slurm session": {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
    "salloc, without srun": {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8"},
    "srun of one task in a large job": {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
    "torchrun in a batch script": {**TORCHRUN, "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},
    "torchrun on each of two nodes": {**TORCHRUN, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}
    | {"GROUP_WORLD_SIZE": "2"},
    "srun with the variables of torch": {
        **{name: text for name, text in TORCHRUN.items() if name[0] not in "GT"},
        **{"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"},
    },
    "mpirun of one process": {"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"},
    "accelerate launch of one process": {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True"},
    "an address without several processes": {"MASTER_ADDR": "node", "MASTER_PORT": "29500"},
}
REFUSED = {
    "srun": ({"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, "srun --ntasks-per-node 1 torchrun"),
    "srun of a step": ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0"}, "Slurm starts 4 processes"),
    "srun of two torchruns that do not meet": (
        {**TORCHRUN, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}, "1 of them form a run",
    ),
    "mpirun": ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, "Open MPI starts 2 processes"),
    "mpiexec": ({"PMI_SIZE": "2", "PMI_RANK": "1"}, "MPI starts 2 processes"),
    "a rank alone": ({"RANK": "1"}, "set without WORLD_SIZE"),
    "a rank that is too large": ({**TORCHRUN, "RANK": "2"}, "RANK is 2, and WORLD_SIZE is 2"),
    "a local rank that is too large": ({**TORCHRUN, "LOCAL_RANK": "2"}, "LOCAL_RANK is 2, and LOCAL_WORLD_SIZE is 2"),
    "more on a node than in all": ({**TORCHRUN, "LOCAL_WORLD_SIZE": "4"}, "LOCAL_WORLD_SIZE is 4, and WORLD_SIZE is 2"),
    "no rank": ({**TORCHRUN, "RANK": ""}, "RANK is not set"),
    "no local rank": ({**TORCHRUN, "LOCAL_RANK": ""}, "LOCAL_RANK is not set"),
    "no address": ({**TORCHRUN, "MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
    "no number": ({**TORCHRUN, "WORLD_SIZE": "two"}, "'two' is not a number"),
    "no processes": ({"WORLD_SIZE": "0", "RANK": ""}, "there are no processes"),
    "accelerate launch --cpu --num_processes 2": (
        {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "ACCELERATE_MIXED_PRECISION": "no"}, "starts one",
    ),
}  # fmt: skip


@pytest.mark.parametrize("variables", ACCEPTED.values(), ids=ACCEPTED)
def test_variables_that_make_sense_are_accepted(variables):
    assert not launch_problems(variables)


@pytest.mark.parametrize(("variables", "text"), REFUSED.values(), ids=REFUSED)
def test_variables_that_contradict_each_other_are_refused_with_the_command(variables, text):
    [problem] = launch_problems(variables)
    assert text in str(problem)
    assert "sftkit launch" in problem.fix


@pytest.mark.parametrize(("rank", "shown"), [("0", True), ("1", False)])
def test_a_run_and_a_check_without_a_group_are_refused_and_the_first_task_says_so(
    in_process, monkeypatch, tmp_path, rank, shown
):
    monkeypatch.chdir(tmp_path)
    for name, text in {"SLURM_NTASKS": "2", "SLURM_PROCID": rank}.items():
        monkeypatch.setenv(name, text)
    code, output = in_process("run", "--output", "out")
    assert code == 2
    assert ("Slurm starts 2 processes" in output) is shown
    assert not (tmp_path / "out").exists()
    code, output = in_process("check")
    assert code == 2
    assert "Slurm starts 2 processes" in output


def test_a_check_before_the_launch_needs_only_the_number_of_processes():
    assert launch_problems({"WORLD_SIZE": "8"}, planned=True) == []
    assert launch_problems({"WORLD_SIZE": "8"}) != []
    assert launch_problems({"WORLD_SIZE": "8", "RANK": "0"}, planned=True) != []


def test_a_rank_that_is_not_a_number_is_an_error(in_process, monkeypatch):
    monkeypatch.setenv("RANK", "first")
    code, output = in_process("run")
    assert code == 2
    assert "the variable RANK: 'first' is not a number" in output
