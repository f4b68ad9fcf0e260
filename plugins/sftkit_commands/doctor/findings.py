"""What the command finds: lines in sections, without secrets and without the name of the user."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sftkit.api import hide

#: `ok` works; `no` does not, which may be intended; `wrong` has to be fixed; empty is a plain fact.
Status = Literal["", "ok", "no", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One line: a name, a value or a reason, whether it works, and the command that fixes it."""

    name: str
    value: str = ""
    status: Status = ""
    fix: str = ""

    def __post_init__(self) -> None:
        for name in ("name", "value", "fix"):
            object.__setattr__(self, name, shortened(getattr(self, name)))


@dataclass(frozen=True)
class Section:
    """Lines about one subject.

    Attributes:
        title: the subject.
        findings: the lines.
        needed: whether sftkit itself cannot work if one of them is wrong.
    """

    title: str
    findings: list[Finding]
    needed: bool = False

    @property
    def broken(self) -> bool:
        """Whether something in it has to be fixed."""
        return any(finding.status == "wrong" for finding in self.findings)


def shortened(text: str) -> str:
    """A text without secrets, with ``~`` for the home directory."""
    try:
        home = str(Path.home())
    except RuntimeError:  # the system names none
        return hide(text)
    return hide(text if len(home) < 2 else text.replace(home, "~"))


def reason(error: BaseException, most: int = 160) -> str:
    """What an error says, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f"{text[: most - 3]}..."
