"""What a target is given and what it answers: the contract of the modules `local`, `ray`, `slurm`, and so on.

A target is a module with

- ``Options``, a frozen pydantic dataclass: what can follow its name in ``--on NAME:OPTION=VALUE,...``;
- ``plan(job, options) -> Plan``, which checks what can be checked and starts nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sftkit.api import ConfigError, Problem


@dataclass(frozen=True)
class Job:
    """A command of sftkit, and how many processes are to run it.

    Attributes:
        arguments: those of sftkit, as in ``("run", "sft.yaml", "-p", "packing")``.
        nproc: the number of processes on each node; None if it was not given.
        nnodes: the number of nodes.
        max_restarts: how often what fails is started again; None if it was not given.
        name: of the job.
        output: the run directory that the arguments or their files name; empty if they name none.
        resume: ``"auto"`` or ``"newest"`` if the arguments have ``--resume``, else empty.
        files: the configuration files among the arguments.
        values: what those files and the arguments set, by section; nothing of it is checked.
        environment: variables for every process; none of them is a secret.
        made_by: the whole command line, without secrets, to be shown in what is generated.
        file: where to write the file of the job; empty for the name of the job in the working directory.
        submit: whether to submit that file.
        as_json: whether standard output is for one JSON object.
    """

    arguments: tuple[str, ...]
    nproc: int | None = None
    nnodes: int = 1
    max_restarts: int | None = None
    name: str = "sftkit"
    output: str = ""
    resume: str = ""
    files: tuple[str, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    made_by: str = ""
    file: str = ""
    submit: bool = False
    as_json: bool = False

    @property
    def trains(self) -> bool:
        """Whether it is a run, which several processes can share; any other command takes one."""
        return self.arguments[0] == "run"

    def restartable(self, directory: str = "runs") -> Job:
        """The same job with a command that continues when it is started again: with a run directory and ``--resume``.

        Args:
            directory: where the run directory is to be, if the command names none. It is named like the job, so that
                the same launch continues the same run.

        Raises:
            ConfigError: if the command has ``--overwrite``.
        """
        if not self.trains:
            return self
        if "--overwrite" in self.arguments:
            what = "--overwrite would remove the run whenever the job is started again"
            raise ConfigError(Problem(what, "sftkit launch", "remove it, or choose another --output"))
        arguments, output = list(self.arguments), self.output
        if not output:
            output = f"{directory}/{self.name}"
            arguments += ["--output", output]
        if self.resume != "auto":
            arguments = [*without_resume(arguments), "--resume", "auto"]
        return replace(self, arguments=tuple(arguments), output=output, resume="auto")


@dataclass(frozen=True)
class Plan:
    """What a target will do.

    Attributes:
        text: what ``--dry-run`` prints: a command, or the file of the job.
        facts: the same for ``--json``.
        start: does it, and returns the exit code, which is that of the command of sftkit if it has run to its end.
        notes: what was chosen for the user, or what to do next; each is shown as a line.
        runs_here: whether the command of sftkit prints on this process's standard output, also with ``--json``.
    """

    text: str
    facts: Mapping[str, Any]
    start: Callable[[], int]
    notes: tuple[str, ...] = ()
    runs_here: bool = False


def without_resume(arguments: Sequence[str]) -> list[str]:
    """The arguments without ``--resume`` in all its forms."""
    kept: list[str] = []
    before = ""
    for item in arguments:
        value = item == "auto" and before == "--resume"
        if not value and item not in ("--resume", "--resume=auto", "--resume-auto"):
            kept.append(item)
        before = item
    return kept


def file_option_problems(job: Job, target: str) -> Iterator[Problem]:
    """Options for a job file, which the target does not write."""
    if job.file or job.submit:
        fix = "leave them out, or add --dry-run to see what would be done"
        yield Problem("--file and --submit are for targets that write a file", f"--on {target}", fix)


def job_name(text: str) -> str:
    """A text as the name of a job: lower-case letters, digits and hyphens, at most 40, a letter first."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-")
    return name if name[:1].isalpha() else f"run-{name}".strip("-")
