"""The target ``skypilot``: a task for a managed job, which is started again elsewhere when its machines are lost."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

from sftkit.api import ConfigError, Field, Problem, dataclass
from sftkit_commands.launch.files import file_plan, header, processes
from sftkit_commands.launch.job import Job, Plan

PORT = 29500
STORAGE = "/sftkit"
INTERRUPTED = 143  # sftkit's exit code after SIGTERM and at run.max_time


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid", "coerce_numbers_to_str": True})
class Options:
    """Which machines, and where the run directory is kept."""

    gpu: Annotated[str, Field(description="Kind of the GPUs, such as H100; --nproc is their number. Required.")] = ""
    bucket: Annotated[str, Field(description=f"Bucket for the run directory, mounted at {STORAGE}; for one node.")] = ""
    volume: Annotated[
        str, Field(description=f"Volume of SkyPilot for the run directory, mounted at {STORAGE} on every node.")
    ] = ""
    infra: Annotated[str, Field(description="Where, such as aws/us-east-1 or k8s. Default: the cheapest.")] = ""
    spot: Annotated[bool, Field(description="Use spot machines.")] = False
    setup: Annotated[str, Field(description="A line of shell, or a file with some, that prepares each machine.")] = (
        "pip install sftkit-train"
    )
    env_from: Annotated[
        list[str], Field(description="[NAME, ...]: variables that `sky jobs launch --secret NAME` passes.")
    ] = Field(default_factory=list)
    python: Annotated[str, Field(description="The Python on the machines.")] = "python"


def plan(job: Job, options: Options) -> Plan:
    """The task, and the command that launches it as a managed job.

    Raises:
        ConfigError: without a kind of GPU, a place for the run directory, or the number of processes.
    """
    import yaml

    nproc = processes(job, "skypilot")
    _check(job, options)
    notes = []
    named = job.output
    job = job.restartable(f"{STORAGE}/runs")
    if job.trains and not named:
        notes.append(f"the run directory is {job.output}, in {options.bucket or options.volume}")
    notes.append("the working directory is copied to the machines; paths outside of it must be there already")
    text = f"{header(job)}\n{yaml.dump(_task(job, options, nproc), Dumper=_dumper(), sort_keys=False, width=120)}"
    secrets = [part for name in options.env_from for part in ("--secret", name)]
    return file_plan(job, "skypilot", text, ".sky.yaml", ["sky", "jobs", "launch", *secrets], notes)


def _check(job: Job, options: Options) -> None:
    where = "--on skypilot"
    problems = []
    if not options.gpu:
        problems.append(Problem("the kind of GPU is not given", where, "add gpu=NAME; `sky show-gpus` lists them"))
    if not options.setup:
        problems.append(Problem("nothing installs sftkit on the machines", where, "add setup=COMMAND or setup=FILE"))
    if bool(options.bucket) == bool(options.volume):
        what = "both a bucket and a volume are given" if options.bucket else "neither a bucket nor a volume is given"
        fix = "add bucket=NAME or volume=NAME: machines that are lost take their disks along"
        problems.append(Problem(what, where, fix))
    elif options.bucket and job.nnodes > 1:
        fix = "use volume=NAME, which all nodes share"
        problems.append(Problem("nodes see each other's files in a bucket too late to share it", where, fix))
    if job.output and not job.output.startswith(f"{STORAGE}/"):
        what = f"the run directory {job.output} is lost with its machine"
        problems.append(Problem(what, where, f"write --output {STORAGE}/{job.output.strip('/')}"))
    if problems:
        raise ConfigError(problems)


def _task(job: Job, options: Options, nproc: int) -> dict[str, Any]:
    resources: dict[str, Any] = {"accelerators": f"{options.gpu}:{nproc}"}
    if options.infra:
        resources["infra"] = options.infra
    if options.spot:
        resources["use_spot"] = True
    if job.trains:
        resources["job_recovery"] = {
            "max_restarts_on_errors": job.max_restarts or 0,
            "recover_on_exit_codes": [INTERRUPTED],
        }
    setup = Path(options.setup)
    lines = setup.read_text(encoding="utf-8") if setup.is_file() else options.setup
    storage: dict[str, Any] = (
        {"volumes": {STORAGE: options.volume}}
        if options.volume
        else {"file_mounts": {STORAGE: {"name": options.bucket, "mode": "MOUNT_CACHED"}}}
    )
    return {
        "name": job.name,
        "num_nodes": job.nnodes,
        "resources": resources,
        "workdir": ".",
        **storage,
        **({"envs": dict(job.environment)} if job.environment else {}),
        **({"secrets": dict.fromkeys(options.env_from)} if options.env_from else {}),
        "setup": f"{lines.rstrip()}\n",
        "run": _run(job, options, nproc),
    }


def _run(job: Job, options: Options, nproc: int) -> str:
    sftkit = f"{shlex.quote(options.python)} -m sftkit"
    command = shlex.join(job.arguments)
    if not job.trains:
        return f"{sftkit} {command}\n"
    if job.nnodes == 1:
        return f"{sftkit} launch --nproc {nproc} \\\n  {command}\n"
    group = f'"local:endpoint=$first:{PORT},node_rank=$SKYPILOT_NODE_RANK,id={job.name}"'
    return (
        'first=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)\n'
        f"{sftkit} launch --nproc {nproc} --nnodes {job.nnodes} \\\n  --on {group} \\\n  {command}\n"
    )


def _dumper() -> Any:
    """A dumper that writes text of several lines as a block."""
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: Any, value: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return Dumper
