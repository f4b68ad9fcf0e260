"""The checkpoint to resume from: the newest one that is complete."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sftkit.checkpoints.manifest import MANIFEST, STATE, read

NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Choice:
    """Which checkpoint of a run to resume from.

    Attributes:
        path: the newest complete checkpoint; None if there is none.
        manifest: its manifest.
        rejected: the newer ones, each with the reason why it is not used.
    """

    path: Path | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    rejected: tuple[tuple[Path, str], ...] = ()


def checkpoints(directory: Path) -> dict[int, Path]:
    """The directories in ``directory`` that are named like checkpoints, by their step, the oldest first."""
    found = [(NAME.fullmatch(path.name), path) for path in directory.iterdir() if path.is_dir()]
    return dict(sorted((int(name[1]), path) for name, path in found if name))


def is_saved(path: Path) -> bool:
    """Whether a directory with the name of a checkpoint is one, complete or not, rather than somebody's own."""
    return not path.is_symlink() and any((path / name).is_file() for name in (MANIFEST, STATE))


def newest(directory: Path, contents: bool = True) -> Choice:
    """The newest complete checkpoint of a run.

    Args:
        directory: the directory of the run.
        contents: compare the digests of the files too, and not only their names and sizes.
    """
    rejected: list[tuple[Path, str]] = []
    for step, path in reversed(checkpoints(directory).items()):
        manifest, problem = read(path, step, contents)
        if not problem:
            return Choice(path, manifest, tuple(rejected))
        rejected.append((path, problem))
    return Choice(rejected=tuple(rejected))
