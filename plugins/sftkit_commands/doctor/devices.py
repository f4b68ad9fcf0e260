"""Accelerators, the precisions that they compute in, and what lets several processes train together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from sftkit.api import size_text
from sftkit_commands.doctor.findings import Finding, reason


def devices() -> Iterator[Finding]:
    """The accelerators that torch uses."""
    from sftkit_commands.doctor.examine import without_gpu

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    built = built if torch.version.cuda or torch.version.hip else "the CPU"
    yield Finding("torch", f"built for {built}")
    if not torch.accelerator.is_available():
        what = without_gpu()
        fix = "install the build of torch for the driver of the GPU: https://pytorch.org/get-started/locally"
        yield Finding("GPU", what or "none: runs use the CPU", "wrong" if what else "", fix if what else "")
        return
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        found = torch.cuda.get_device_properties(number)
        free = torch.cuda.mem_get_info(number)[0]
        what = f"{found.name}, {size_text(found.total_memory)} ({size_text(free)} free), "
        yield Finding(f"GPU {number}", f"{what}compute capability {found.major}.{found.minor}", "ok")
    if torch.cuda.is_available():
        yield Finding("driver", _driver())
    else:
        yield Finding("accelerator", str(torch.accelerator.current_accelerator()), "ok")


def _driver() -> str:
    """The version of the driver, and the newest CUDA that it runs."""
    import ctypes

    version = ctypes.c_int(0)
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return "unknown"
    text = f"up to CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as file:
            return f"{file.readline().split('Kernel Module')[-1].split()[0]}, {text}"
    except (OSError, IndexError):
        return text


def device() -> torch.device:
    """The accelerator, else the CPU."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def precisions() -> Iterator[Finding]:
    """The data types in which the device multiplies matrices, forward and backward."""
    for name in ("float32", "bfloat16", "float16"):
        try:
            left = torch.ones(8, 8, dtype=getattr(torch, name), device=device(), requires_grad=True)
            (left @ left).sum().backward()
            slow = name != "float32" and device().type == "cpu"
            yield Finding(name, "works, but is slow on this device" if slow else "works", "ok")
        except Exception as error:  # whatever the device raises, this type does not work
            yield Finding(name, reason(error), "no")
    capable = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    yield Finding("tf32", "works" if capable else "needs a GPU of compute capability 8.0", "ok" if capable else "no")


def distributed() -> Iterator[Finding]:
    """The back ends for several processes that this build of torch has."""
    import torch.distributed as dist

    if not dist.is_available():
        yield Finding("torch.distributed", "this build of torch has none", "no")
        return
    known: Any = {"gloo": dist.is_gloo_available, "nccl": dist.is_nccl_available, "mpi": dist.is_mpi_available}
    for name, available in known.items():
        there = available()
        works = there and (name != "nccl" or torch.cuda.is_available())
        missing = "needs a GPU" if there or name == "nccl" else "this build of torch has none"
        yield Finding(name, "" if works else missing, "ok" if works else "no")
