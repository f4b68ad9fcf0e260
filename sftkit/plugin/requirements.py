"""Whether this machine has what a plugin needs, found out without importing a heavy package."""

from __future__ import annotations

import ctypes
import os
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from sftkit.errors import Problem


def requirement_problem(text: str, dist: metadata.Distribution | None, where: str) -> Problem | None:
    """The problem with one requirement, as ``"peft>=0.18"``, or None where it is met."""
    try:
        requirement = Requirement(text)
    except InvalidRequirement as error:
        return Problem(
            f"requires {text!r}, which is not a valid requirement: {error}", where, "correct it in the plugin"
        )
    if requirement.marker and not requirement.marker.evaluate():
        return None
    fix = install_command(requirement, dist)
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Problem(f"needs the package {requirement.name}, which is not installed", where, fix)
    if not requirement.specifier.contains(version, prereleases=True):
        return Problem(f"needs {requirement.name}{requirement.specifier}, and {version} is installed", where, fix)
    return None


def install_command(requirement: Requirement, dist: metadata.Distribution | None) -> str:
    """The pip command that brings a package: the smallest extra of the plugin's own distribution that has it."""
    wanted = canonicalize_name(requirement.name)
    items = [Requirement(line) for line in (dist.requires or [])] if dist else []
    extras = (dist.metadata.get_all("Provides-Extra") or []) if dist else []
    brought = {extra: [item for item in items if _belongs(item, extra)] for extra in extras if extra != "dev"}
    having = {extra: own for extra, own in brought.items() if wanted in {canonicalize_name(item.name) for item in own}}
    if dist and having:
        return f'pip install "{dist.name}[{min(having, key=lambda extra: len(having[extra]))}]"'
    return f'pip install "{requirement.name}{requirement.specifier}"'


def _belongs(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def has_gpu() -> bool:
    """Whether a GPU is visible: asks the CUDA driver, and looks for the ROCm and Intel devices, without torch."""
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
