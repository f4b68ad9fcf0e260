"""What a run was measured with."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGES = (
    *("sftkit-train", "torch", "triton", "transformers", "accelerate", "datasets", "peft", "trl"),
    *("liger-kernel", "flash-attn", "bitsandbytes", "unsloth"),
    *("huggingface-hub", "numpy", "pyarrow", "pydantic", "pytest", "safetensors", "tokenizers"),
)
QUERY = ["name", "driver_version", "memory.total", "power.limit", "clocks.max.sm"]


def environment(root: Path) -> dict[str, Any]:
    """Card, driver, versions, and the commit of the checkout where there is one."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "packages": {name: version for name in PACKAGES if (version := version_of(name))},
        "commit": commit(root),
        "sftkit": source(root),
    }
    card = _output(["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"])
    if card:
        found["gpu"] = dict(zip(QUERY, (part.strip() for part in card.splitlines()[0].split(",")), strict=False))
    return found


def source(root: Path) -> str:
    """Whose sftkit is imported: that of the checkout, or an installed one."""
    spec = find_spec("sftkit")
    inside = spec is not None and spec.origin is not None and Path(spec.origin).is_relative_to(root)
    return "from the checkout" if inside else "installed from a wheel"


def version_of(package: str) -> str | None:
    """The installed version of a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit(root: Path) -> str | None:
    """The commit of a checkout, with a plus where files differ from it; None without git."""
    found = _output(["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"])
    changed = found and _output(["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"])
    return f"{found}+" if changed else found or None


def _output(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
