"""The target ``local``: torchrun on this machine, alone or as one node of several."""

from __future__ import annotations

import os
import shlex
import sys
from typing import Annotated, Any

from sftkit.api import ConfigError, Field, Problem, dataclass, has_gpu, processors
from sftkit_commands.launch.job import Job, Plan, file_option_problems

PORT = 29500


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid", "coerce_numbers_to_str": True})
class Options:
    """How several nodes find each other; one needs none of it."""

    endpoint: Annotated[
        str, Field(description=f"HOST[:PORT] of the first node, the same on every node. Port: {PORT} by default.")
    ] = ""
    id: Annotated[str, Field(description="Name of the group, the same on every node. Default: that of the job.")] = ""
    node_rank: Annotated[
        int | None,
        Field(ge=0, description="0 on the first node, which keeps the group. Default: found by the host's name."),
    ] = None
    wait: Annotated[int, Field(gt=0, description="Seconds that a node waits for the others.")] = 600


def plan(job: Job, options: Options) -> Plan:
    """The command of torchrun; without it if there is one process that is not started again.

    Raises:
        ConfigError: if there are too few GPUs, or several nodes without an endpoint.
    """
    _check(job, options)
    if job.max_restarts:
        job = job.restartable()
    nproc, notes = _processes(job)
    sftkit = [*job.arguments, *(["--json"] if job.as_json and "--json" not in job.arguments else [])]
    variables = dict(job.environment)
    if nproc * job.nnodes > 1 and _on_cpu(job) and job.trains:
        sftkit += _cpu_settings(job)
    if nproc > 1 and "OMP_NUM_THREADS" not in {**os.environ, **variables}:
        variables["OMP_NUM_THREADS"] = str(max(processors() // nproc, 1))
        notes.append(f"OMP_NUM_THREADS={variables['OMP_NUM_THREADS']}: {processors()} cores for {nproc} processes")
    if nproc * job.nnodes == 1 and not job.max_restarts:
        arguments: list[str] = []
        command = [sys.executable, "-m", "sftkit", *sftkit]
    else:
        kept = [item.replace("$", "$$") for item in sftkit]  # torchrun replaces ${local_rank} and other macros
        arguments = [*_torchrun(job, options, nproc), "-m", "sftkit", *kept]
        command = [sys.executable, "-m", "torch.distributed.run", *arguments]

    def start() -> int:
        os.environ.update(variables)
        if not arguments:
            from sftkit_commands.launch.agent import run_alone

            return run_alone(command)
        from sftkit_commands.launch.agent import run_agent

        return run_agent(arguments)

    text = shlex.join([*(f"{name}={value}" for name, value in variables.items()), *command])
    facts = {"target": "local", "nproc": nproc, "nnodes": job.nnodes, "environment": variables, "command": command}
    return Plan(text, facts, start, tuple(notes), runs_here=True)


def _check(job: Job, options: Options) -> None:
    problems = []
    if job.nnodes > 1 and not options.endpoint:
        fix = (
            "start the same command on every node with --on local:endpoint=HOST:PORT, where HOST is the first node; "
            "or let a cluster start it, as with --on slurm"
        )
        problems.append(Problem(f"--nnodes {job.nnodes}: the nodes cannot find each other", "--on local", fix))
    if job.nnodes == 1 and options.endpoint:
        problems.append(Problem("an endpoint is for several nodes", "--on local, endpoint", "add --nnodes M"))
    host, colon, port = options.endpoint.partition(":")
    if options.endpoint and (not host or (colon and not port.isdigit())):
        problems.append(Problem(f"{options.endpoint!r} is not HOST:PORT", "--on local, endpoint", "correct it"))
    if options.node_rank is not None and options.node_rank >= job.nnodes:
        what = f"{options.node_rank} is not below --nnodes {job.nnodes}"
        problems.append(Problem(what, "--on local, node_rank", "count the nodes from 0"))
    problems += file_option_problems(job, "local")
    if problems:
        raise ConfigError(problems)


def _processes(job: Job) -> tuple[int, list[str]]:
    """The number of processes on this node, and what is to say of it."""
    if not job.trains:
        return 1, []
    if _on_cpu(job):
        if job.nproc is None:
            reason = "train.use_cpu is set" if _setting(job, "use_cpu") else "this machine has no GPU"
            return 1, [f"{reason}: one process; --nproc N starts N on the CPU"]
        return job.nproc, []
    import torch

    count = torch.accelerator.device_count()
    if job.nproc is not None and job.nproc > count:
        what = f"--nproc {job.nproc}: this machine shows {count} {'GPU' if count == 1 else 'GPUs'}"
        fix = f"use --nproc {count}, check CUDA_VISIBLE_DEVICES, or train on the CPU with train.use_cpu=true"
        raise ConfigError(Problem(what, "sftkit launch", fix))
    return job.nproc or max(count, 1), []


def _on_cpu(job: Job) -> bool:
    return bool(_setting(job, "use_cpu")) or not has_gpu()


def _setting(job: Job, name: str) -> Any:
    train = job.values.get("train")
    return train.get(name) if isinstance(train, dict) else None


def _cpu_settings(job: Job) -> list[str]:
    """What several processes need on a CPU and the configuration does not set."""
    needed = {"use_cpu": "true", "ddp_backend": "gloo"}
    return [f"train.{name}={value}" for name, value in needed.items() if _setting(job, name) is None]


def _torchrun(job: Job, options: Options, nproc: int) -> list[str]:
    """The options of torchrun."""
    if job.nnodes == 1:
        found = ["--standalone"]
    else:
        endpoint = options.endpoint if ":" in options.endpoint else f"{options.endpoint}:{PORT}"
        settings = [f"join_timeout={options.wait}", f"read_timeout={options.wait}"]
        if options.node_rank is not None:
            settings.append(f"is_host={str(options.node_rank == 0).lower()}")
        found = ["--nnodes", str(job.nnodes), "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint]
        found += ["--rdzv-id", options.id or job.name, "--rdzv-conf", ",".join(settings)]
    found += ["--nproc-per-node", str(nproc)]
    return [*found, "--max-restarts", str(job.max_restarts)] if job.max_restarts else found
