"""What one process of a machine does for all of its processes, which wait for it and trust its stamp."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit import errors
from sftkit.errors import Problem, SftkitError
from sftkit.ranks import local_rank, world_size
from sftkit.storage import write_json

if TYPE_CHECKING:
    from filelock import FileLock

GRACE = 30.0  # seconds without a sign of the leading process after which another one does its work
POLL = 0.1
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def node_name() -> str:
    """A name for this machine since it was started; containers with names of their own are machines, too."""
    import xxhash

    boot = _BOOT.read_text().strip() if _BOOT.exists() else ""
    return xxhash.xxh3_64_hexdigest(f"{platform.node()} {boot}".encode())


def leads() -> bool:
    """Whether this process is the first one of the launch on its machine, or the only one."""
    return local_rank() == 0


def _launch() -> list[str | None]:
    return [os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")]


def identity_on_disk(path: Path) -> list[int]:
    """What changes when a file is written: size, times and inode."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


@dataclass(frozen=True)
class Stamp:
    """The word of the first process of a machine that files are as they should be.

    Other processes of the same launch trust it as long as that process lives and the files have not changed since.

    Attributes:
        path: the file of the stamp.
    """

    path: Path

    def write(self, files: Sequence[Path], error: SftkitError | None = None) -> None:
        """Vouch for files, or leave the reason why there are none; without other processes nothing is written."""
        if world_size() == 1:
            return
        import psutil

        found: dict[str, Any] = {"launch": _launch(), "pid": os.getpid(), "started": psutil.Process().create_time()}
        found["files"] = {str(file): identity_on_disk(file) for file in files}
        if error is not None:
            problems = [[each.what, each.where, each.fix] for each in error.problems]
            found["error"] = [type(error).__name__, problems]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path, found)

    def trusted(self) -> bool:
        """Whether this process can use the files.

        Raises:
            SftkitError: as in the process that leads, if it has failed.
        """
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            if found["launch"] != _launch() or not _lives(found["pid"], found["started"]):
                return False
            if "error" in found:
                name, problems = found["error"]
                raise getattr(errors, name, SftkitError)([Problem(*each) for each in problems])
            return all(identity_on_disk(Path(file)) == known for file, known in found["files"].items())
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def awaited(self, lock: FileLock) -> bool:
        """Wait until the files can be used; False if this process has to see to them itself.

        While the leading process holds the lock, it is waited for; no lock is held meanwhile.

        Raises:
            SftkitError: as in the process that leads, if it has failed.
        """
        from filelock import Timeout

        if leads():
            return False
        seen = time.monotonic()
        while not self.trusted():
            time.sleep(POLL)
            if time.monotonic() - seen < GRACE:
                continue
            try:
                with lock.acquire(timeout=0):
                    return self.trusted()
            except Timeout:
                seen = time.monotonic()
        return True


def _lives(pid: int, started: float) -> bool:
    import psutil

    try:
        return bool(psutil.Process(pid).create_time() == started)
    except psutil.Error:
        return False
