"""What the checks of a prepared run found."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from sftkit.errors import Problem, RunError
from sftkit.ranks import is_main_process

logger = logging.getLogger("sftkit")

Status: TypeAlias = Literal["ok", "warn", "wrong"]


@dataclass(frozen=True)
class Verdict:
    """What one check found.

    Attributes:
        name: what was checked.
        status: ``ok``, ``warn`` for what may be intended, ``wrong`` for what would ruin or stop the run.
        what: what was found, with its figures.
        fix: what to do about it; empty where nothing has to be done.
        where: the place in the configuration, such as ``data.train``, where there is one.
        details: figures for ``sftkit check --json``.
    """

    name: str
    status: Status
    what: str
    fix: str = ""
    where: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


def stop_if_wrong(verdicts: Iterable[Verdict]) -> None:
    """Log the warnings, and stop if there is a wrong verdict.

    Raises:
        RunError: with every wrong verdict.
    """
    problems = []
    for verdict in verdicts:
        if verdict.status == "warn" and is_main_process():
            logger.warning("%s: %s -> %s", verdict.name, verdict.what, verdict.fix)
        elif verdict.status == "wrong":
            problems.append(Problem(verdict.what, verdict.where or verdict.name, verdict.fix))
    if problems:
        raise RunError(problems)
