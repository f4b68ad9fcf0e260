"""The target ``kubernetes``: a TrainJob of Kubeflow Trainer, or a JobSet, which Kubeflow Trainer is made of."""

from __future__ import annotations

import shlex
from typing import Annotated, Any, Literal

from sftkit.api import ConfigError, Field, Problem, dataclass
from sftkit_commands.launch.files import file_plan, header, processes, with_grace
from sftkit_commands.launch.job import Job, Plan

PORT = 29500
RESTARTS = 10
CONTAINER = "node"  # which Kubeflow's runtimes have
#: Exit codes that come again however often a run is started: a bug, and what the user can fix.
FINAL = [1, 2]


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid", "coerce_numbers_to_str": True})
class Options:
    """What a pod is made of."""

    kind: Annotated[
        Literal["trainjob", "jobset"],
        Field(description="trainjob, for Kubeflow Trainer 2.2 or newer; or jobset, for JobSet alone."),
    ] = "trainjob"
    image: Annotated[str, Field(description="Image with sftkit. Required.")] = ""
    volume: Annotated[
        str, Field(description="CLAIM:/PATH, a volume claim that all pods share, for the run directory. Required.")
    ] = ""
    workdir: Annotated[
        str, Field(description="Directory in the container that paths are relative to. Default: PATH of the volume.")
    ] = ""
    runtime: Annotated[str, Field(description="Runtime of a TrainJob.")] = "torch-distributed"
    namespace: Annotated[str, Field(description="Namespace. Default: that of kubectl.")] = ""
    service_account: Annotated[str, Field(description="Service account of the pods.")] = ""
    queue: Annotated[str, Field(description="Queue of Kueue.")] = ""
    env_from: Annotated[
        list[str], Field(description="[SECRET/KEY, ...]: variables named KEY, from secrets of the namespace.")
    ] = Field(default_factory=list)
    gpu: Annotated[str, Field(description="Name of the GPUs as a resource; empty for none.")] = "nvidia.com/gpu"
    cpu: Annotated[str, Field(description="CPU cores of a pod, such as 64.")] = ""
    memory: Annotated[str, Field(description="Memory of a pod, such as 512Gi.")] = ""
    grace: Annotated[int, Field(gt=0, description="Seconds between SIGTERM and the end, to save a checkpoint.")] = 120
    python: Annotated[str, Field(description="The Python in the image.")] = "python"


def plan(job: Job, options: Options) -> Plan:
    """The manifest, and the command of kubectl that submits it.

    Raises:
        ConfigError: without an image, a volume or the number of processes.
    """
    import yaml

    _check(job, options)
    nproc = processes(job, "kubernetes")
    claim, path = options.volume.split(":")
    notes = []
    named = job.output
    job = with_grace(job.restartable(f"{path.rstrip('/')}/runs"), options.grace)
    if job.trains and not named:
        notes.append(f"the run directory is {job.output}, on the volume {claim}")
    workdir = options.workdir or path
    if job.files:
        notes.append(f"the image or the volume must have, in {workdir}: {', '.join(job.files)}")
    pod = _Pod(job, options, nproc, workdir)
    if options.kind == "trainjob":
        notes.append("restarts are those of the runtime; kind=jobset has a policy for sftkit's exit codes")
    manifest = _trainjob(pod) if options.kind == "trainjob" else _jobset(pod)
    text = f"{header(job)}\n{yaml.safe_dump(manifest, sort_keys=False, width=120)}"
    return file_plan(job, "kubernetes", text, f".{options.kind}.yaml", ["kubectl", "create", "-f"], notes)


def _check(job: Job, options: Options) -> None:
    where = "--on kubernetes"
    problems = []
    if not options.image:
        problems.append(Problem("no image is given", where, "add image=NAME, an image with sftkit"))
    claim, colon, path = options.volume.partition(":")
    if not (claim and colon and path.startswith("/")):
        what = f"{options.volume!r} is not CLAIM:/PATH" if options.volume else "no volume is given"
        fix = "add volume=CLAIM:/PATH: a pod that starts again needs the checkpoints of the one before"
        problems.append(Problem(what, where, fix))
    elif job.output and not job.output.startswith("/"):
        what = f"the run directory {job.output} is relative, and may not be on the volume"
        problems.append(Problem(what, where, f"write it as in --output {path.rstrip('/')}/{job.output}"))
    problems += [
        Problem(f"{item!r} is not SECRET/KEY", f"{where}, env_from", "name a secret and one of its keys")
        for item in options.env_from
        if item.count("/") != 1
    ]
    if options.kind == "trainjob" and job.max_restarts is not None:
        fix = "leave out --max-restarts, or use kind=jobset"
        problems.append(Problem("a TrainJob is restarted as its runtime says", f"{where} --max-restarts", fix))
    if problems:
        raise ConfigError(problems)


class _Pod:
    """What both kinds of manifest are made of."""

    def __init__(self, job: Job, options: Options, nproc: int, workdir: str) -> None:
        self.job, self.options, self.nproc, self.workdir = job, options, nproc, workdir

    @property
    def metadata(self) -> dict[str, Any]:
        found: dict[str, Any] = {"name": self.job.name}
        if self.options.namespace:
            found["namespace"] = self.options.namespace
        if self.options.queue:
            found["labels"] = {"kueue.x-k8s.io/queue-name": self.options.queue}
        return found

    def command(self, endpoint: str, rank: str) -> list[str]:
        """The container's command; Kubernetes replaces ``$(NAME)`` by the variable of the container."""
        job = self.job
        sftkit = [self.options.python, "-m", "sftkit"]
        if not job.trains:
            return [*sftkit, *map(_literal, job.arguments)]
        launch = ["launch", "--nproc", str(self.nproc)]
        if job.nnodes > 1:
            group = f"local:endpoint={endpoint},node_rank={rank},id={job.name}"
            launch += ["--nnodes", str(job.nnodes), "--on", group]
        return [*sftkit, *launch, *map(_literal, job.arguments)]

    @property
    def environment(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [
            {"name": name, "value": _literal(value)} for name, value in self.job.environment.items()
        ]
        for item in self.options.env_from:
            secret, key = item.split("/")
            found.append({"name": key, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
        return found

    @property
    def resources(self) -> dict[str, Any]:
        limits = {self.options.gpu: str(self.nproc)} if self.options.gpu else {}
        requests = {name: value for name in ("cpu", "memory") if (value := getattr(self.options, name))}
        return {name: values for name, values in (("limits", limits), ("requests", requests)) if values}

    @property
    def mounts(self) -> list[dict[str, Any]]:
        path = self.options.volume.split(":")[1]
        return [{"name": "runs", "mountPath": path}, {"name": "shared-memory", "mountPath": "/dev/shm"}]

    @property
    def settings(self) -> dict[str, Any]:
        """What the pod has besides its container; /dev/shm, which NCCL and data workers need, is 64 MB otherwise."""
        account = self.options.service_account
        return {
            **({"serviceAccountName": account} if account else {}),
            "terminationGracePeriodSeconds": self.options.grace,
            "volumes": [
                {"name": "runs", "persistentVolumeClaim": {"claimName": self.options.volume.split(":")[0]}},
                {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
            ],
        }


def _literal(text: str) -> str:
    """A text in which Kubernetes replaces nothing."""
    return text.replace("$(", "$$(")


def _trainjob(pod: _Pod) -> dict[str, Any]:
    command = pod.command("$(PET_MASTER_ADDR):$(PET_MASTER_PORT)", "$(PET_NODE_RANK)")
    # A TrainJob has no field for the working directory of its container.
    shell = ["sh", "-c", f'cd {shlex.quote(pod.workdir)} && exec "$@"', "sh"]
    container = {"name": CONTAINER, "volumeMounts": pod.mounts}
    node = {"name": "node", "template": {"spec": {"template": {"spec": {**pod.settings, "containers": [container]}}}}}
    trainer = {
        "image": pod.options.image,
        "numNodes": pod.job.nnodes,
        "numProcPerNode": pod.nproc,
        "command": shell,
        "args": command,
        "env": pod.environment,
        "resourcesPerNode": pod.resources,
    }
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": pod.metadata,
        "spec": {
            "runtimeRef": {"name": pod.options.runtime},
            "trainer": {name: value for name, value in trainer.items() if value},
            "runtimePatches": [
                {
                    "manager": "sftkit.launch/command",
                    "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [node]}}},
                }
            ],
        },
    }


def _jobset(pod: _Pod) -> dict[str, Any]:
    job = pod.job
    first = f"{job.name}-node-0-0.{job.name}:{PORT}"
    container = {
        "name": CONTAINER,
        "image": pod.options.image,
        "command": pod.command(first, "$(JOB_COMPLETION_INDEX)"),
        "workingDir": pod.workdir,
        "env": pod.environment,
        "resources": pod.resources,
        "volumeMounts": pod.mounts,
    }
    container = {name: value for name, value in container.items() if value}
    final = {"containerName": CONTAINER, "operator": "In", "values": FINAL}
    spec = {
        "parallelism": job.nnodes,
        "completions": job.nnodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": final}]},
        "template": {"spec": {"restartPolicy": "Never", **pod.settings, "containers": [container]}},
    }
    rule = {"name": "userError", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": pod.metadata,
        "spec": {
            "failurePolicy": {
                "maxRestarts": RESTARTS if job.max_restarts is None else job.max_restarts,
                "rules": [rule],
            },
            "network": {"enableDNSHostnames": True, "subdomain": job.name},
            "replicatedJobs": [{"name": "node", "replicas": 1, "template": {"spec": spec}}],
        },
    }
