"""What a target is given and what it answers: the contract of the modules `local`, `ray`, `slurm`, and so on.

A target is a module with

- ``Options``, a pydantic dataclass: what can follow its name in ``--on NAME:OPTION=VALUE,...``;
- ``plan(job, options) -> Plan``, which starts nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Job:
    """A command of sftkit, and how many processes are to run it.

    Attributes:
        arguments: those of sftkit, as in ``("run", "sft.yaml", "-p", "packing")``.
        nproc: the number of processes on each node; None if it was not given.
        nnodes: the number of nodes.
        max_restarts: how often processes that fail are started again; None if it was not given.
        name: of the job.
        output: the run directory that the arguments or their files name; empty if they name none.
        resume: ``"auto"`` or ``"newest"`` if the arguments have ``--resume``, else empty.
        environment: variables for every process; none of them is a secret.
        made_by: the whole command line, without secrets, to be shown in what is generated.
    """

    arguments: tuple[str, ...]
    nproc: int | None = None
    nnodes: int = 1
    max_restarts: int | None = None
    name: str = "sftkit"
    output: str = ""
    resume: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    made_by: str = ""

    @property
    def trains(self) -> bool:
        """Whether it is a run, which several processes can share; any other command takes one."""
        return self.arguments[0] == "run"

    def restartable(self) -> Job:
        """The same job, whose command can be started again and then continues: it has a directory and resumes.

        A directory that is chosen is named by the job, so the same launch continues the same run.
        """
        if not self.trains:
            return self
        arguments, output = list(self.arguments), self.output
        if not output:
            output = f"runs/{self.name}"
            arguments += ["--output", output]
        if self.resume != "auto":
            arguments = [item for item in arguments if item != "--resume"] + ["--resume", "auto"]
        return replace(self, arguments=tuple(arguments), output=output, resume="auto")


@dataclass(frozen=True)
class Plan:
    """What a target will do.

    Attributes:
        text: what ``--dry-run`` prints: a command, or the file of the job.
        facts: the same for ``--json``.
        start: does it, and returns the exit code, which is sftkit's if it has run here.
        notes: what was chosen for the user and is worth a line.
    """

    text: str
    facts: Mapping[str, Any]
    start: Callable[[], int]
    notes: tuple[str, ...] = ()


def job_name(text: str) -> str:
    """A text as the name of a job: lower-case letters, digits and hyphens, at most 40."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-") or "sftkit"
