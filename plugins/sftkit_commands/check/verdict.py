"""What one check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Status: TypeAlias = Literal["ok", "warn", "wrong"]


@dataclass(frozen=True)
class Verdict:
    """What one check found.

    Attributes:
        name: what was checked.
        status: ``wrong`` where the run would be; ``warn`` where it may not be what was meant.
        what: what was found, in figures.
        fix: what to do about it.
    """

    name: str
    status: Status
    what: str
    fix: str = ""
