"""The files of jobs: each is what its scheduler reads, continues what it started, and holds no secret."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

SCHEMAS = json.loads((Path(__file__).parent / "schemas.json").read_text())
KUBERNETES = "kubernetes:image=ghcr.io/me/sft:1,volume=runs:/data,env_from=[hf/HF_TOKEN],cpu=64,memory=512Gi,queue=q"
KUBERNETES += ",service_account=me,namespace=ml"
SKYPILOT = "skypilot:gpu=H100,setup='pip install ./wheel',env_from=[HF_TOKEN]"


@pytest.fixture
def rendered(launch):
    """Calls ``sftkit launch --dry-run``; returns the file that would be written."""

    def render(on, *options, command=("run", "sft.yaml")):
        code, printed = launch("--on", on, "--dry-run", "--json", *options, *command)
        assert code == 0, printed
        return json.loads(next(line for line in printed.splitlines() if line.startswith("{")))

    return render


def manifest(rendered, on, *options, **command):
    text = rendered(on, *options, **command)["text"]
    assert text.startswith("# Made by: sftkit launch --on ")
    return yaml.safe_load(text)


def check(value, name):
    jsonschema.validate(value, {**SCHEMAS, "$ref": f"#/$defs/{name}"})
    return value


@pytest.mark.parametrize("nodes", ["1", "4"])
@pytest.mark.parametrize("kind", ["trainjob", "jobset"])
def test_manifests_of_kubernetes_have_the_fields_of_their_apis(rendered, kind, nodes):
    found = manifest(rendered, f"{KUBERNETES},kind={kind}", "--nproc", "8", "--nnodes", nodes, "--env", "A=$(b)")
    check(found, kind)


@pytest.mark.parametrize("kind", ["trainjob", "jobset"])
def test_manifests_of_kubernetes_are_whole_in_the_types_of_kubeflow(rendered, kind):
    found = manifest(rendered, f"{KUBERNETES},kind={kind}", "--nproc", "8", "--nnodes", "4", "--env", "A=b")
    models = pytest.importorskip("kubeflow_trainer_api.models")
    name = {"trainjob": "TrainerV1alpha1TrainJob", "jobset": "JobsetV1alpha2JobSet"}[kind]
    assert json.loads(getattr(models, name).from_dict(found).to_json()) == found


def test_a_trainjob_starts_the_nodes_processes_on_its_volume(rendered):
    found = manifest(rendered, KUBERNETES, "--nproc", "8", "--nnodes", "4")
    trainer = found["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (4, 8)
    assert trainer["resourcesPerNode"]["limits"] == {"nvidia.com/gpu": "8"}
    group = "local:endpoint=$(PET_MASTER_ADDR):$(PET_MASTER_PORT),node_rank=$(PET_NODE_RANK),id=sft"
    launched = ["launch", "--nproc", "8", "--nnodes", "4", "--on", group]
    run = ["run", "sft.yaml", "--output", "/data/runs/sft", "--resume", "auto", "run.grace=120"]
    assert trainer["args"] == ["python", "-m", "sftkit", *launched, *run]
    assert trainer["env"][-1]["valueFrom"] == {"secretKeyRef": {"name": "hf", "key": "HF_TOKEN"}}
    (patch,) = found["spec"]["runtimePatches"]
    pod = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 120
    assert pod["containers"][0]["volumeMounts"][0] == {"name": "runs", "mountPath": "/data"}


def test_a_jobset_starts_again_unless_the_user_must_act(rendered):
    options = f"{KUBERNETES},kind=jobset,grace=30"
    found = manifest(rendered, options, "--nproc", "8", "--nnodes", "4", "--max-restarts", "5")
    assert found["spec"]["failurePolicy"]["maxRestarts"] == 5
    assert found["spec"]["failurePolicy"]["rules"][0]["action"] == "FailJobSet"
    job = found["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [1, 2]
    container = job["template"]["spec"]["containers"][0]
    assert "local:endpoint=sft-node-0-0.sft:29500,node_rank=$(JOB_COMPLETION_INDEX),id=sft" in container["command"]
    assert container["command"][-1] == "run.grace=30"
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] == 30


@pytest.mark.parametrize(("storage", "nodes"), [("bucket=b", "1"), ("volume=v", "4")])
def test_a_task_of_skypilot_keeps_its_run_where_it_outlives_the_machines(rendered, storage, nodes):
    facts = rendered(f"{SKYPILOT},{storage}", "--nproc", "8", "--nnodes", nodes, "--env", "A=b")
    task = check(yaml.safe_load(facts["text"]), "skypilot")
    assert facts["submit"] == ["sky", "jobs", "launch", "--secret", "HF_TOKEN", "sft.sky.yaml"]
    assert facts["output"] == "/sftkit/runs/sft"
    assert task["secrets"] == {"HF_TOKEN": None}
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [143]
    assert list(task.get("volumes", task.get("file_mounts"))) == ["/sftkit"]
    assert "run sft.yaml --output /sftkit/runs/sft --resume auto\n" in task["run"]
    assert ("node_rank=$SKYPILOT_NODE_RANK" in task["run"]) == (nodes == "4")
    subprocess.run(["bash", "-n"], input=task["run"], text=True, check=True)


def test_skypilot_reads_the_task(rendered, tmp_path):
    sky = pytest.importorskip("sky")
    text = rendered(f"{SKYPILOT},volume=v,infra=k8s,spot=true", "--nproc", "8", "--nnodes", "4", "--env", "A=b")["text"]
    (tmp_path / "task.yaml").write_text(text)
    assert sky.Task.from_yaml(str(tmp_path / "task.yaml")).num_nodes == 4


def test_a_batch_script_has_what_sbatch_and_the_run_need(rendered, tmp_path):
    options = "slurm:partition=gpu,time=12:00:00,cpus-per-task=64,exclude=[n1,n2],setup='module load cuda, x',grace=90"
    text = rendered(options, "--nproc", "8", "--nnodes", "4", "--env", "A=b c")["text"]
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    lines = text.splitlines()
    assert lines[1].startswith("# Made by: sftkit launch --on ")
    directives = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    wanted = ["--nodes=4", "--ntasks-per-node=1", "--gpus-per-node=8", "--partition=gpu", "--time=12:00:00"]
    wanted += ["--exclude=n1,n2", f"--chdir={tmp_path}", f"--output={tmp_path}/logs/%x-%j.log"]
    assert {*wanted, "--open-mode=append", "--requeue", "--signal=TERM@90"} <= {*directives}
    assert "module load cuda, x" in lines
    assert "export A='b c'" in lines
    assert "    run sft.yaml --output runs/sft --resume auto run.grace=90 || code=$?" in lines


def test_every_long_option_of_sbatch_can_follow(rendered):
    from sftkit_commands.launch.slurm import SBATCH

    assert not [name for name in SBATCH if name.startswith("-") or name.endswith("-")]
    text = rendered("slurm:oom-kill-step=1,tres-bind=gres/gpu:single:1", "--nproc", "8")["text"]
    assert {"#SBATCH --oom-kill-step=1", "#SBATCH --tres-bind=gres/gpu:single:1"} <= {*text.splitlines()}


def test_a_setup_file_is_read_on_the_node(rendered, tmp_path):
    (tmp_path / "setup.sh").write_text("module load cuda\n")
    lines = rendered("slurm:setup=setup.sh", "--nproc", "2")["text"].splitlines()
    assert f"source {tmp_path}/setup.sh" in lines


def test_another_command_is_one_process(rendered):
    text = rendered("slurm:gres=gpu:a100:1", command=("evaluate", "runs/a", "--rows", "4"))["text"]
    assert f"srun {shlex.quote(sys.executable)} -m sftkit evaluate runs/a --rows 4" in text
    assert "--requeue" not in text
    assert "--gpus-per-node" not in text
    assert "--gres=gpu:a100:1" in text


@pytest.mark.parametrize(
    ("on", "options", "problem"),
    [
        ("slurm", [], "the number of processes on each node is not known -> add --nproc N"),
        ("slurm:parition=gpu", ["--nproc", "2"], "did you mean 'partition'?"),
        ("slurm:nodes=3", ["--nproc", "2"], "is set by `sftkit launch` -> use --nnodes"),
        ("kubernetes", ["--nproc", "2"], "add image=NAME"),
        ("kubernetes:image=i,volume=runs", ["--nproc", "2"], "'runs' is not CLAIM:/PATH"),
        ("kubernetes:image=i,volume=runs:/d", ["--nproc", "2", "--max-restarts", "3"], "use kind=jobset"),
        ("kubernetes:image=i,volume=runs:/d,kind=pod", ["--nproc", "2"], "'trainjob' or 'jobset'"),
        ("skypilot:gpu=H100,setup=x", ["--nproc", "2"], "neither a bucket nor a volume is given"),
        ("skypilot:gpu=H100,setup=x,bucket=b", ["--nproc", "2", "--nnodes", "2"], "use volume=NAME"),
        ("skypilot:bucket=b,setup=x", ["--nproc", "2"], "add gpu=NAME"),
    ],
)
def test_what_a_target_needs_is_named(launch, on, options, problem):
    code, printed = launch("--on", on, *options, "run", "sft.yaml")
    assert code == 2
    assert problem in printed


def test_a_relative_run_directory_on_a_machine_that_goes_is_an_error(launch):
    code, printed = launch("--on", "kubernetes:image=i,volume=runs:/d", "--nproc", "2", "run", "sft.yaml", "-o", "a")
    assert (code, "--output /d/a" in printed) == (2, True)
    code, printed = launch("--on", f"{SKYPILOT},volume=v", "--nproc", "2", "run", "sft.yaml", "-o", "a")
    assert (code, "--output /sftkit/a" in printed) == (2, True)


def test_a_file_is_replaced_only_if_launch_has_written_it(launch, tmp_path):
    call = ["--on", "slurm", "--nproc", "2", "run", "sft.yaml"]
    code, printed = launch(*call)
    assert (code, "sft.sbatch is written; submit it: sbatch sft.sbatch" in printed) == (0, True)
    assert (tmp_path / "logs").is_dir()
    assert launch(*call)[0] == 0
    (tmp_path / "sft.sbatch").write_text("#!/bin/bash\n# mine\n")
    code, printed = launch(*call)
    assert (code, "did not write" in printed) == (2, True)
    assert (tmp_path / "sft.sbatch").read_text() == "#!/bin/bash\n# mine\n"


def test_a_dry_run_writes_nothing(launch, tmp_path):
    before = sorted(tmp_path.iterdir())
    code, printed = launch("--on", "slurm", "--nproc", "2", "--dry-run", "--submit", "run", "sft.yaml")
    assert (code, "#SBATCH --nodes=1" in printed) == (0, True), printed
    assert sorted(tmp_path.iterdir()) == before


def test_submitting_calls_the_scheduler(launch, slurm, monkeypatch):
    call = ["--on", "slurm", "--nproc", "2", "--file", "jobs/a.sbatch", "--submit", "run", "sft.yaml"]
    assert launch(*call)[0] == 0
    assert (slurm / "submitted").read_text() == "jobs/a.sbatch\n"
    monkeypatch.setenv("SBATCH_CODE", "1")
    code, printed = launch(*call)
    assert (code, "`sbatch jobs/a.sbatch` ended with exit code 1" in printed) == (2, True)
    monkeypatch.setenv("PATH", os.devnull)
    code, printed = launch(*call)
    assert (code, "sbatch is not installed here" in printed) == (2, True)


def test_no_secret_gets_into_a_file(launch, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    base = ["--on", "slurm", "--nproc", "2"]
    code, printed = launch(*base, "--env", "WANDB_API_KEY=0123456789abcdef", "run", "sft.yaml")
    assert (code, "WANDB_API_KEY is a secret" in printed) == (2, True)
    code, printed = launch(*base, "run", "sft.yaml", "plugins.x.api_key=0123456789abcdef")
    assert (code, "a secret is among the arguments" in printed) == (2, True)
    code, printed = launch("--on", "slurm:setup=login 0123456789abcdef", "--nproc", "2", "run", "sft.yaml")
    assert (code, "the file would contain a secret" in printed) == (2, True)
    assert "0123456789abcdef" not in printed
    assert not list(tmp_path.glob("*.sbatch"))
