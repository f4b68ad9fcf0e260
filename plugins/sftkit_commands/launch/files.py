"""Job files: what every target that writes one has in common."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from sftkit.api import ConfigError, Problem, console, hide, write_text
from sftkit_commands.launch.job import Job, Plan

MARK = "# Made by: "


def header(job: Job) -> str:
    """The first line of a job file: the command that made it."""
    return MARK + " ".join(job.made_by.splitlines())


def processes(job: Job, target: str) -> int:
    """The number of processes on each node.

    Raises:
        ConfigError: if a run does not say it: this machine cannot know.
    """
    if not job.trains:
        return 1
    if job.nproc is None:
        fix = "add --nproc N, the number of GPUs of each node"
        raise ConfigError(Problem("the number of processes on each node is not known", f"--on {target}", fix))
    return job.nproc


def with_grace(job: Job, seconds: int) -> Job:
    """The job, whose run knows how much time it has to save after a signal; a `run.grace` that is set stays."""
    section = job.values.get("run")
    if not job.trains or (isinstance(section, dict) and "grace" in section):
        return job
    return replace(job, arguments=(*job.arguments, f"run.grace={seconds}"))


def file_plan(job: Job, target: str, text: str, suffix: str, submit: list[str], notes: list[str]) -> Plan:
    """The plan to write a job file, and to submit it if that is wanted.

    Args:
        job: the job.
        target: its target.
        text: of the file.
        suffix: of the file's name, if none was chosen.
        submit: the command that submits the file, which is its last argument.
        notes: what was chosen for the user.

    Raises:
        ConfigError: if the text has a secret, or the file is another's.
    """
    path = Path(job.file or f"{job.name}{suffix}")
    _check(job, text, path, target)
    command = [*submit, str(path)]
    facts: dict[str, Any] = {"target": target, "file": str(path), "text": text, "submit": command}
    if job.trains:
        facts["output"] = job.output

    def start() -> int:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
        if job.submit:
            return _submitted(command, target, job.as_json)
        if not job.as_json:
            console().print(f"{path} is written; submit it: {shlex.join(command)}", markup=False)
        return 0

    return Plan(text, facts, start, tuple(notes))


def _check(job: Job, text: str, path: Path, target: str) -> None:
    if any(hide(item) != item for item in job.arguments):
        fix = "set it as an environment variable, and write ${NAME} in the configuration file"
        raise ConfigError(Problem("a secret is among the arguments", f"--on {target}", fix))
    for number, line in enumerate(text.splitlines(), 1):
        if hide(line) != line and not line.startswith(MARK):
            fix = f"use what the target has for secrets (--on {target}:help)"
            raise ConfigError(Problem("the file would contain a secret", f"line {number} of {path}", fix))
    if path.is_file() and MARK not in path.read_text(encoding="utf-8", errors="replace")[:4096]:
        fix = "choose another name with --file, or remove it"
        raise ConfigError(Problem("there is a file that `sftkit launch` did not write", str(path), fix))


def _submitted(command: list[str], target: str, as_json: bool) -> int:
    if shutil.which(command[0]) is None:
        fix = f"submit the file where it is installed: {shlex.join(command)}"
        raise ConfigError(Problem(f"{command[0]} is not installed here", f"--on {target} --submit", fix))
    ended = subprocess.run(command, stdout=sys.stderr.fileno() if as_json else None)
    if ended.returncode:
        what = f"`{shlex.join(command)}` ended with exit code {ended.returncode}"
        raise ConfigError(Problem(what, f"--on {target} --submit", "read what it printed, and correct it"))
    return 0
