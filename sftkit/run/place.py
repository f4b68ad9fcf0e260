"""Where the processes of a run write: a directory that all of them name alike, and whether all of them see it."""

from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from sftkit.errors import Problem, RunError
from sftkit.ranks import local_rank
from sftkit.run.directories import MANIFEST
from sftkit.run.lock import LOCK
from sftkit.run.manifest import read_manifest

logger = logging.getLogger("sftkit")

if TYPE_CHECKING:
    from sftkit.run.processes import Processes
    from sftkit.training.engine import Engine

SEEN_SECONDS = 5.0  # in which a network file system shows a new file on another machine


def launch() -> str:
    """What is the same for all that one torchrun starts, and for nothing else; empty without torchrun."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    if not name:
        return ""
    agent = psutil.Process(os.getppid())
    return f"{name} {os.environ.get('GROUP_RANK', '0')} {agent.pid} {agent.create_time()}"


def begun_before(directory: Path, named: bool) -> Path | None:
    """The directory of the run that the same torchrun has begun, and that it starts again after a failure.

    Args:
        directory: the directory of the run.
        named: whether that is its name by the configuration, and not by the time.
    """
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") or 0) == 0 or not launch():
        return None
    places = [directory] if named else [path.parent for path in directory.parent.glob(f"*/{MANIFEST}")]
    found = [(place, manifest) for place in places if (manifest := read_manifest(place))]
    ours = [place for place, manifest in found if manifest["parts"][-1].get("launch") == launch()]
    return max(ours, default=None)


def agreed_place(processes: Processes, directory: Path, named: bool) -> tuple[Path, bool]:
    """The directory in which all processes run, and whether they continue a run after a restart by torchrun.

    Args:
        processes: those of the run.
        directory: what this process would name it.
        named: whether that is its name by the configuration.
    """
    begun = begun_before(directory, named) if processes.is_main else None
    place, again = json.loads(processes.from_main("the directory", json.dumps([str(begun or directory), bool(begun)])))
    return directory if named else Path(place), again


def seen_by_all(processes: Processes, directory: Path) -> bool:
    """Whether the first process of each machine sees what the main process writes into the run directory.

    The lock of the directory is what it looks for, so the main process has to hold it.
    """
    if processes.size == 1:
        return True
    written = processes.from_main("the lock", (directory / LOCK).read_text("utf-8") if processes.is_main else "")
    first = local_rank() == 0 and not processes.is_main
    unseen = processes.count("whether all see the directory", int(first and not _sees(directory / LOCK, written)))
    if unseen and processes.is_main:
        what = (
            "not all machines see the run directory %s: its checkpoints lack the states of the processes on the others"
        )
        logger.warning(f"{what}, and the run cannot be resumed", directory)
    return unseen == 0


def _sees(path: Path, text: str) -> bool:
    until = time.monotonic() + SEEN_SECONDS
    while True:
        try:
            if path.read_text("utf-8") == text:
                return True
        except OSError:
            pass
        if time.monotonic() > until:
            return False
        time.sleep(0.2)


def require_seen(seen: bool, directory: Path, earlier: Any, engine: Engine) -> None:
    """Raises:
    RunError: if not all machines see the run directory, and the run has to read there what others have written.
    """
    fix = "use a directory on a file system that all machines share"
    if seen or (earlier is None and not engine.sharded):
        return
    what = "not all machines see the run directory"
    if earlier is not None:
        raise RunError(Problem(f"{what}: a checkpoint has a part of each process", str(directory), f"{fix} to resume"))
    raise RunError(Problem(f"{what}: {engine.name} saves a part of the model in each process", str(directory), fix))
