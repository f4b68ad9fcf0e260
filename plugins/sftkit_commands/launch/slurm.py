"""The target ``slurm``: a batch script that trains on several nodes, and continues itself after its time limit."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

from sftkit.api import ConfigError, Field, Problem, dataclass, nearest
from sftkit_commands.launch.files import file_plan, header, processes, with_grace
from sftkit_commands.launch.job import Job, Plan

HINT = "Any other option of sbatch can follow by its long name: partition=gpu, time=12:00:00, cpus-per-task=64."
RESTARTS = 100
#: Long names of sbatch's options that a job may have.
_NAMES = """
account acctg-freq batch bb bbf begin burst-buffer cluster-constraint clusters comment constraint contiguous
core-spec cores-per-socket cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot dependency distribution
exclude exclusive export export-file extra extra-node-info get-user-env gid gpu-bind gpu-freq gpus gpus-per-node
gpus-per-socket gpus-per-task gres gres-flags hint hold ignore-pbs input kill-on-invalid-dep licenses mail-type
mail-user mcs-label mem mem-bind mem-per-cpu mem-per-gpu mincpus network nice no-kill nodefile nodelist
oom-kill-step overcommit oversubscribe partition power prefer priority profile propagate qos quiet reboot
reservation sockets-per-node spread-job stepmgr switches thread-spec threads-per-core time time-min tmp
tres-bind tres-per-task uid use-min-nodes verbose wait-all-nodes wckey x11
"""
SBATCH = frozenset(_NAMES.split())
#: Those that the command sets itself, each with what to use instead.
OURS = {
    "nodes": "use --nnodes",
    "ntasks": "each node has one task, which starts --nproc processes",
    "ntasks-per-node": "each node has one task, which starts --nproc processes",
    "job-name": "use --name",
    "output": "use the option logs",
    "error": "use the option logs; errors are in the same file",
    "open-mode": "the log of a job that is requeued is appended to",
    "requeue": "the job is requeued up to --max-restarts times",
    "no-requeue": "use --max-restarts 0",
    "signal": "use the option grace",
    "chdir": "start `sftkit launch` in the directory",
    "array": "it would start the same run several times; use `sftkit sweep` or one job for each",
    "wrap": "the command follows `sftkit launch`",
}


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid", "coerce_numbers_to_str": True})
class Options:
    """How the batch script is made."""

    setup: Annotated[
        str, Field(description="A line of shell, or a file with some, that prepares each node: modules, environment.")
    ] = ""
    python: Annotated[
        str, Field(description="The Python of the environment with sftkit. Default: the one that runs this command.")
    ] = ""
    grace: Annotated[
        int, Field(gt=0, le=65535, description="Seconds before the time limit at which a checkpoint is saved.")
    ] = 120
    logs: Annotated[str, Field(description="Directory of the logs.")] = "logs"
    further: dict[str, str] = Field(default_factory=dict)


def further_options(given: dict[str, Any]) -> dict[str, str]:
    """Options of sbatch; one without a value is ``name=true``.

    Raises:
        ConfigError: for those that sbatch does not have, or that this command sets.
    """
    own = [name for name in Options.__dataclass_fields__ if name != "further"]
    problems = []
    for key in given:
        name = key.replace("_", "-")
        if name in OURS:
            problems.append(Problem("is set by `sftkit launch`", f"--on slurm, {key}", OURS[name]))
        elif name not in SBATCH:
            fix = nearest(name, [*own, *SBATCH]) or "`--on slurm:help` lists the options"
            problems.append(Problem("no such option, here or of sbatch", f"--on slurm, {key}", fix))
    if problems:
        raise ConfigError(problems)
    return {key.replace("_", "-"): _text(value) for key, value in given.items()}


def _text(value: Any) -> str:
    if value is True:
        return ""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def plan(job: Job, options: Options) -> Plan:
    """The batch script, and the command that submits it.

    Raises:
        ConfigError: if the number of processes is not known, or the command has ``--overwrite``.
    """
    nproc = processes(job, "slurm")
    notes = []
    named = job.output
    job = with_grace(job.restartable(), options.grace)
    if job.trains and not named:
        notes.append(f"the run directory is {job.output}, since a job that is requeued needs one that stays the same")
    if not {"cpus-per-task", "cpus-per-gpu", "exclusive"} & set(options.further) and nproc > 1:
        notes.append(f"no cpus-per-task is set: some clusters then give one core to the {nproc} processes of a node")
    logs = Path(options.logs).absolute()
    text = "\n".join(
        [
            "#!/bin/bash",
            header(job),
            *(f"#SBATCH {line}" for line in _directives(job, options, nproc, logs)),
            "",
            *_body(job, options, nproc),
            "",
        ]
    )
    written = file_plan(job, "slurm", text, ".sbatch", ["sbatch"], notes)

    def start() -> int:
        logs.mkdir(parents=True, exist_ok=True)  # without it, Slurm starts no job and says nothing
        return written.start()

    return Plan(written.text, written.facts, start, written.notes)


def _directives(job: Job, options: Options, nproc: int, logs: Path) -> list[str]:
    chosen = dict(options.further)
    gpus = {} if {"gpus", "gres", "gpus-per-task", "gpus-per-node"} & set(chosen) else {"gpus-per-node": str(nproc)}
    found = {
        "job-name": job.name,
        "nodes": str(job.nnodes),
        "ntasks-per-node": "1",
        **gpus,
        **chosen,
        "chdir": str(Path.cwd()),
        "output": f"{str(logs).replace('%', '%%')}/%x-%j.log",
    }
    lines = [f"--{name}" if value == "" else f"--{name}={shlex.quote(value)}" for name, value in found.items()]
    if job.trains:
        lines += ["--open-mode=append", "--requeue", f"--signal=TERM@{options.grace}"]
    return [line for line in lines if line != "--gpus-per-node=0"]


def _body(job: Job, options: Options, nproc: int) -> list[str]:
    lines = [f"export {name}={shlex.quote(value)}" for name, value in job.environment.items()]
    if options.setup:
        file = Path(options.setup)
        lines.append(f"source {shlex.quote(str(file.absolute()))}" if file.is_file() else options.setup)
    if "cpus-per-task" in options.further:
        lines.append('export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"  # which srun does not inherit')
    sftkit = [options.python or sys.executable, "-m", "sftkit"]
    command = shlex.join(job.arguments)
    if not job.trains:
        return [*lines, f"srun {shlex.join(sftkit)} {command}"]
    launch = f"launch --nproc {nproc}"
    if job.nnodes > 1:
        lines += [
            "# The first node keeps the group of processes, under a name that each attempt has for itself.",
            'first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
            "port=$((20000 + SLURM_JOB_ID % 20000))",
            'id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"',
        ]
        launch += f' --nnodes {job.nnodes} --on "local:endpoint=$first:$port,id=$id"'
    restarts = RESTARTS if job.max_restarts is None else job.max_restarts
    return [
        *lines,
        "",
        f"# Slurm sends SIGTERM to every process {options.grace} seconds before the time limit: the run saves a",
        "# checkpoint and ends with 143. The job is then requeued, and continues from the checkpoint.",
        "code=0",
        "srun --kill-on-bad-exit=0 --wait=60 \\",
        f"    {shlex.join(sftkit)} {launch} \\",
        f"    {command} || code=$?",
        f'if [ "$code" -eq 143 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {restarts} ]; then',
        '    scontrol requeue "$SLURM_JOB_ID"',
        "fi",
        'exit "$code"',
    ]
