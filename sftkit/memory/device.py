"""The device of a run, and the memory that the run can use there."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sftkit.ranks import local_rank

if TYPE_CHECKING:
    import torch

    from sftkit.config import RunConfig

NO_LIMIT = 1 << 60  # bytes; version 1 of cgroups writes a larger number if there is no limit


@dataclass(frozen=True)
class DeviceMemory:
    """Memory on a device, in bytes.

    Attributes:
        device: its name, such as ``cpu`` or ``NVIDIA H100``.
        held: what this process uses now.
        most: what it can use altogether; None if that is not known.
    """

    device: str
    held: int
    most: int | None


def device_of(config: RunConfig) -> torch.device:
    """The device that the Trainer chooses."""
    import torch

    if config.train.get("use_cpu") or not torch.accelerator.is_available():
        return torch.device("cpu")
    kind = torch.accelerator.current_accelerator()
    assert kind is not None
    return torch.device(kind.type, local_rank())


def memory_of(device: torch.device) -> DeviceMemory:
    """The memory of a device; on a CPU within the limits of the process's cgroups."""
    import torch

    if device.type == "cpu":
        return host_memory()
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device)
        return DeviceMemory(torch.cuda.get_device_name(device), torch.cuda.memory_allocated(device), free + reserved)
    return DeviceMemory(device.type, 0, None)


def host_memory() -> DeviceMemory:
    """The memory of the CPU, within the limits of the process's cgroups."""
    import psutil

    held = psutil.Process().memory_info().rss
    free = min([psutil.virtual_memory().available, *cgroup_free()])
    return DeviceMemory("cpu", held, held + free)


def fragments() -> bool:
    """Whether the CPU's allocator fragments its heap, so that it takes more memory than the tensors in it.

    In glibc before 2.38, ``memalign`` does not reuse the aligned blocks that were freed (bug 14581). With
    ``MALLOC_MMAP_THRESHOLD_`` set, tensors above the threshold are mapped one by one instead.
    """
    name, version = platform.libc_ver()
    if name != "glibc" or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    return tuple(int(part) for part in version.split(".")[:2]) < (2, 38)


def cgroup_free(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """Free bytes of each cgroup above this process that has a limit; unused cached files count as free.

    Args:
        proc: the list of the process's groups.
        root: the directory where the groups are mounted.
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
        # In a container the path may be that of the host, and the container's group is mounted at the top.
        for place in dict.fromkeys([group, *group.parents, top]):
            if place.is_relative_to(top):
                yield from _free(place, *files)


def _free(group: Path, limit_name: str, usage_name: str) -> Iterator[int]:
    try:
        limit, usage = ((group / name).read_text().strip() for name in (limit_name, usage_name))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except OSError:
        return
    if limit != "max" and int(limit) < NO_LIMIT:
        idle = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))
        yield max(int(limit) - int(usage) + idle, 0)
