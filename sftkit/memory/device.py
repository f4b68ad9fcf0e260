"""The device that a run is on, and how much memory it may come to hold there."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from sftkit.config import RunConfig

NO_LIMIT = 1 << 60  # bytes; cgroups of version 1 write a number about as large as this for none


@dataclass(frozen=True)
class DeviceMemory:
    """Memory on a device, in bytes.

    Attributes:
        device: a name for people, as ``cpu`` or ``NVIDIA H100``.
        held: what this process holds there now.
        most: what it could come to hold in all; None where that is not known.
    """

    device: str
    held: int
    most: int | None


def device_of(config: RunConfig) -> torch.device:
    """The device that the Trainer would choose."""
    import torch

    if config.train.get("use_cpu") or not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return torch.device(kind.type, int(os.environ.get("LOCAL_RANK", "0")))


def memory_of(device: torch.device) -> DeviceMemory:
    """What there is room for; on a CPU the limits of the process's cgroups count too."""
    import torch

    if device.type == "cpu":
        import psutil

        held = psutil.Process().memory_info().rss
        free = min([psutil.virtual_memory().available, *cgroup_rooms()])
        return DeviceMemory("cpu", held, held + free)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
        return DeviceMemory(torch.cuda.get_device_name(device), torch.cuda.memory_allocated(device), free + reserved)
    return DeviceMemory(device.type, 0, None)


def leaves_holes() -> bool:
    """Whether a CPU's allocator leaves holes between the tensors in its heap, so that it holds more than they take.

    glibc before 2.38 does: its ``memalign`` does not find the aligned blocks again that it freed (its bug 14581). With
    ``MALLOC_MMAP_THRESHOLD_`` set, tensors above it are mapped one by one and leave none.
    """
    name, version = platform.libc_ver()
    if name != "glibc" or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    return tuple(int(part) for part in version.split(".")[:2]) < (2, 38)


def cgroup_rooms(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Bytes that each limited cgroup above this process has left; files that are cached and not in use count as left.

    Args:
        proc: where the process's groups are listed.
        root: where the groups are mounted.
    """
    try:
        lines = proc.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, names, path = line.split(":", 2)
        if names and "memory" not in names.split(","):
            continue
        top = root / "memory" if names else root
        files = ("memory.limit_in_bytes", "memory.usage_in_bytes") if names else ("memory.max", "memory.current")
        group = top / path.lstrip("/")
        # Inside a container the path may be the host's, and its group the mount itself.
        for place in dict.fromkeys([group, *group.parents, top]):
            if place.is_relative_to(top):
                yield from _room(place, *files)


def _room(group: Path, limit_name: str, usage_name: str) -> Iterator[int]:
    try:
        limit, usage = ((group / name).read_text().strip() for name in (limit_name, usage_name))
        told = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return
    if limit != "max" and int(limit) < NO_LIMIT:
        idle = int(told.get("total_inactive_file", told.get("inactive_file", 0)))
        yield max(int(limit) - int(usage) + idle, 0)
