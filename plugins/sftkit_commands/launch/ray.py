"""``--on ray``: the run in the workers of Ray Train, on a cluster or on this machine."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass as plain_dataclass
from datetime import datetime
from typing import Annotated, Any, Optional

from sftkit.api import ConfigError, Field, Problem, dataclass, requirement_problem
from sftkit_commands.launch.job import Job, Plan, file_option_problems, without_resume

REQUIRES = "ray[train]>=2.50"
RESTARTS = 3  # unless the launch says how many
WHERE = "sftkit launch --on ray"
OWN = "that of this node, or a new one on this machine"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Where the cluster is, and what each process takes of it."""

    address: Annotated[
        str,
        Field(
            description="auto: the cluster of this node. HOST:6379: one in whose network this machine is. "
            "http://HOST:8265: any other, to which a job is submitted. "
            "Default: RAY_ADDRESS, the cluster of this node, or one that is started on this machine for the run."
        ),
    ] = ""
    cpus: Annotated[float, Field(gt=0, description="CPUs that each process takes.")] = 1.0
    gpu: Annotated[
        Optional[bool],  # noqa: UP045 (pydantic reads it on Python 3.10)
        Field(description="Whether each process takes a GPU. Default: if the cluster has any and the run uses them."),
    ] = None
    wait: Annotated[int, Field(ge=1, description="Seconds to wait for nodes with enough resources.")] = 600
    grace: Annotated[int, Field(ge=1, description="Seconds that a submitted job has to save when it is stopped.")] = 600

    @property
    def cluster(self) -> str:
        """The address that was given, here or by the environment."""
        return self.address or os.environ.get("RAY_ADDRESS", "")

    @property
    def submits(self) -> bool:
        """Whether a job is submitted."""
        return self.cluster.startswith(("http://", "https://"))


@plain_dataclass(frozen=True)
class Launch:
    """What Ray Train is to do.

    Attributes:
        first: the arguments of ``sftkit run``.
        again: those that continue it when workers are started again.
        output: the run directory.
        nnodes: the number of nodes.
        nproc: the number of processes on each.
        cpus: that each process takes.
        gpu: whether each process takes a GPU; None if the cluster has any.
        restarts: how often workers are started again.
        wait: seconds to wait for resources.
        environment: variables of the workers.
    """

    first: tuple[str, ...]
    again: tuple[str, ...]
    output: str
    nnodes: int
    nproc: int
    cpus: float
    gpu: bool | None
    restarts: int
    wait: int
    environment: Mapping[str, str]

    @property
    def workers(self) -> int:
        """The number of processes."""
        return self.nnodes * self.nproc

    @property
    def placement(self) -> str:
        """Ray's placement strategy: all on one node, each on another, or evenly if there are as many nodes."""
        return "STRICT_PACK" if self.nnodes == 1 else "STRICT_SPREAD" if self.nproc == 1 else "SPREAD"

    @property
    def overwrites(self) -> bool:
        """Whether the run replaces another."""
        return "--overwrite" in self.first


def plan(job: Job, options: Options) -> Plan:
    """What a launch on Ray will do.

    Raises:
        ConfigError: if it cannot be done on Ray.
    """
    if problems := list(_problems(job, options)):
        raise ConfigError(problems)
    return _run_plan(job, options) if job.trains else _prepare_plan(job, options)


def _run_plan(job: Job, options: Options) -> Plan:
    launch = launch_of(job, options)
    resources: dict[str, Any] = {"CPU": launch.cpus}
    if launch.gpu is not False:
        resources["GPU"] = 1 if launch.gpu else "1 if the cluster has any"
    facts: dict[str, Any] = {
        "cluster": options.cluster or OWN,
        "command": shlex.join(["sftkit", "run", *launch.first]),
        "restarted": shlex.join(["sftkit", "run", *launch.again]),
        "restarts": launch.restarts,
        "workers": launch.workers,
        "placement": launch.placement,
        "resources": resources,
        "output": launch.output,
    }
    text = {
        "cluster": facts["cluster"],
        "processes": f"{launch.workers}, placed by {launch.placement}, each with {_resources_text(resources)}",
        "each runs": facts["command"],
        "restarted": f"at most {launch.restarts} times: {facts['restarted']}",
        "run directory": f"{launch.output}, on storage that all nodes share",
    }

    def drive() -> int:
        from sftkit_commands.launch.ray_driver import drive

        return drive(launch, options.cluster)

    notes = () if job.nproc else ("one process on each node: --nproc N starts more",)
    return _plan(job, options, facts, text, drive, notes)


def _prepare_plan(job: Job, options: Options) -> Plan:
    command = ["sftkit", *job.arguments, *(["--json"] if job.as_json and "--json" not in job.arguments else [])]
    facts: dict[str, Any] = {"cluster": options.cluster or OWN, "command": shlex.join(command)}
    facts["resources"] = {"CPU": options.cpus}
    text = {
        "cluster": facts["cluster"],
        "runs": facts["command"],
        "tasks": f"as many at once as the cluster has room for, each with {_resources_text(facts['resources'])}",
    }

    def drive() -> int:
        from sftkit_commands.launch.ray_driver import prepare

        return prepare(command[1:], options.cluster, options.cpus, job.environment)

    return _plan(job, options, facts, text, drive, ())


def _plan(
    job: Job,
    options: Options,
    facts: dict[str, Any],
    text: dict[str, Any],
    drive: Callable[[], int],
    notes: tuple[str, ...],
) -> Plan:
    """The plan that drives the work from this process, or from a job that is submitted."""
    if options.submits:
        from sftkit_commands.launch.ray_jobs import entry_point

        facts |= {"entry_point": shlex.join(entry_point(job, options)), "working_dir": os.getcwd()}
        text |= {"entry point": facts["entry_point"], "uploaded": facts["working_dir"]}

    def start() -> int:
        if problem := requirement_problem(REQUIRES, WHERE):
            raise ConfigError(problem)
        os.environ["RAY_TRAIN_V2_ENABLED"] = "1"  # read when ray.train is imported; the default since 2.51
        if not options.submits:
            return drive()
        if job.as_json:
            fix = "leave it out, and read the manifest that is written"
            raise ConfigError(Problem("a submitted job prints no --json", WHERE, fix))
        from sftkit_commands.launch.ray_jobs import submit

        return submit(job, options)

    lines = "\n".join(f"{name + ':':<14} {value}" for name, value in text.items())
    return Plan(lines, facts, start, notes, runs_here=not options.submits)


def launch_of(job: Job, options: Options) -> Launch:
    """A job as Ray Train runs it."""
    directory = job.output or f"runs/{datetime.now():%Y%m%d-%H%M%S}"
    output = os.path.abspath(directory)
    first = [*job.arguments[1:], *([] if output == job.output else ["--output", output])]
    first += ["--json"] if job.as_json and "--json" not in first else []
    kept = without_resume(first)
    section = job.values.get("train")
    cpu = isinstance(section, Mapping) and section.get("use_cpu") is True
    return Launch(
        first=tuple(first),
        again=(*(item for item in kept if item != "--overwrite"), "--resume", "auto"),
        output=output,
        nnodes=job.nnodes,
        nproc=job.nproc or 1,
        cpus=options.cpus,
        gpu=False if cpu else options.gpu,
        restarts=RESTARTS if job.max_restarts is None else job.max_restarts,
        wait=options.wait,
        environment=dict(job.environment),
    )


def _problems(job: Job, options: Options) -> Iterator[Problem]:
    """What prevents a launch and is known before anything starts."""
    address = options.cluster
    if job.arguments[0] not in ("run", "prepare"):
        fix = "start the command on the cluster, such as with `ray job submit`"
        yield Problem(f"launches `run` and `prepare`, not `sftkit {job.arguments[0]}`", WHERE, fix)
    if address.startswith("ray://"):
        fix = "submit a job with --on ray:address=http://HOST:8265, or give HOST:6379 from within the cluster's network"
        yield Problem(f"Ray Train does not run through Ray Client: {address}", WHERE, fix)
    elif not options.submits and address not in ("", "auto", "local") and not _is_host(address):
        fix = "give auto, HOST:6379 or http://HOST:8265"
        yield Problem(f"{address!r} is not the address of a cluster", WHERE, fix)
    if options.submits and job.trains and not os.path.isabs(job.output):
        what = "the run directory must be an absolute path, on storage that all nodes of the cluster share"
        yield Problem(what, job.output or "--output", "give it with --output /SHARED/DIR")
    yield from file_option_problems(job, "ray")
    if options.gpu and (job.values.get("train") or {}).get("use_cpu") is True:
        yield Problem("the run uses the CPU, so a process takes no GPU", "train.use_cpu", "remove it, or gpu=true")


def _is_host(address: str) -> bool:
    host, _, port = address.rpartition(":")
    return bool(host) and port.isdecimal() and 0 < int(port) < 65536


def _resources_text(resources: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in resources.items())
