"""What a check of a prepared run found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

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
    """

    name: str
    status: Status
    what: str
    fix: str = ""
    where: str = ""
