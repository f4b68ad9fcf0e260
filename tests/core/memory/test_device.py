"""The memory of a device, within the limits of the process."""

from __future__ import annotations

import psutil
import pytest
import torch

from sftkit.memory import device, estimate_memory
from sftkit.testing import tiny_config


@pytest.mark.parametrize(
    ("lines", "files", "free"),
    [
        ("0::/a/b\n", {"a/b": (1000, 700, 200), "a": ("max", 5000, 0), "": (900, 800, 0)}, [500, 100]),
        ("0::/\n", {"": (1000, 1200, 0)}, [0]),
        ("0::/a\n", {"a": ("max", 1, 0)}, []),
        ("0::/not/here\n", {"": (1000, 400, 0)}, [600]),
    ],
)
def test_limits_of_all_cgroups_above_the_process_count(tmp_path, lines, files, free):
    (tmp_path / "cgroup").write_text(lines)
    for path, (limit, usage, idle) in files.items():
        group = tmp_path / "fs" / path
        group.mkdir(parents=True, exist_ok=True)
        (group / "memory.max").write_text(f"{limit}\n")
        (group / "memory.current").write_text(f"{usage}\n")
        (group / "memory.stat").write_text(f"anon 1\ninactive_file {idle}\n")
    assert list(device.cgroup_free(tmp_path / "cgroup", tmp_path / "fs")) == free


def test_limits_of_cgroups_of_version_1_count(tmp_path):
    group = tmp_path / "fs" / "memory" / "a"
    group.mkdir(parents=True)
    (tmp_path / "cgroup").write_text("5:cpu:/a\n4:memory:/a\n")
    (group / "memory.limit_in_bytes").write_text("1000\n")
    (group / "memory.usage_in_bytes").write_text("400\n")
    (group / "memory.stat").write_text("inactive_file 3\ntotal_inactive_file 50\n")
    (group.parent / "memory.limit_in_bytes").write_text(f"{1 << 62}\n")
    (group.parent / "memory.usage_in_bytes").write_text("400\n")
    (group.parent / "memory.stat").write_text("total_inactive_file 0\n")
    assert list(device.cgroup_free(tmp_path / "cgroup", tmp_path / "fs")) == [650]


def test_the_memory_includes_what_the_process_uses():
    available = device.memory_of(torch.device("cpu"))
    assert available.most > available.held > 50e6
    assert available.most <= psutil.virtual_memory().total


def test_an_allocator_that_fragments_is_counted(make_model, batch, monkeypatch):
    def items():
        return estimate_memory(make_model(), batch, tiny_config(train={"use_cpu": True})).items

    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    assert items()["heap fragmentation"] > 0
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1048576")
    assert "heap fragmentation" not in items()
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_")
    monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.41"))
    assert "heap fragmentation" not in items()
