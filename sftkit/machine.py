"""What is known of this machine without torch."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def describe_machine() -> list[str]:
    """Its name, when it was started, its processor, the interpreter, and whether it has a GPU."""
    boot = _BOOT.read_text().strip() if _BOOT.exists() else ""
    return [platform.node(), boot, platform.machine(), sys.version, sys.executable, str(has_gpu())]


def has_gpu() -> bool:
    """Whether a GPU is visible, found without torch: by the CUDA driver, or the device files of ROCm and Intel."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return False
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        count = ctypes.c_int(0)
        if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0:
            return True
    except OSError:
        pass
    return Path("/dev/kfd").exists() or Path("/dev/xpu").exists()
