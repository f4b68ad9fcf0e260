"""The manifest of a run: what was run, with which data and versions, in which parts, and the outcome."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement

from sftkit import DISTRIBUTION
from sftkit.checkpoints.files import write_text
from sftkit.config.resume_fields import train_values
from sftkit.config.train_fields import data_seed, train_value
from sftkit.plugin.paths import absolute_at
from sftkit.ranks import world_size
from sftkit.redact import without_secrets
from sftkit.run.directories import MANIFEST as MANIFEST
from sftkit.user_modules import working_directory

if TYPE_CHECKING:
    from sftkit.config import RunConfig
    from sftkit.plugin.selected import PluginSet
    from sftkit.training.engine import Engine

RUNNING, DONE, INTERRUPTED, FAILED = "running", "done", "interrupted", "failed"
LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "tokenizers", "pluggy", "safetensors")
NO_PROGRAMS = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=")  # a repository's settings may name some to run
_KEYS = {"status", "parts", "config", "train", "plugins", "data", "versions", "writes"}


def new_manifest(config: RunConfig, plugins: PluginSet, engine: Engine) -> dict[str, Any]:
    """The manifest of a run that has not begun, without its data and weights, as it is read back from its file."""
    made = {
        "status": RUNNING,
        "started": now(),
        "config": config.model_dump(mode="json"),
        "train": train_values(config),
        "plugins": {
            item.name: {"distribution": item.distribution, "version": item.version} for item in plugins.selected
        },
        "engine": {"name": engine.name, "sharing": engine.sharing, "reshards": engine.reshards},
        "seeds": {"seed": train_value(config, "seed"), "data_seed": data_seed(config)},
        "versions": versions(plugins),
        "git_commit": git_commit(),
        "working_directory": working_directory(),
        "data": {},
        "columns": [],
        "stats": {},
        "warnings": [],
        "batches": {},
        "weights": {},
        "choices": {},
        "metrics": {},
        "parts": [],
        "writes": sorted({name for item in plugins.selected for name in item.plugin.writes}),
        "files": [],
    }
    return as_read(made)


def as_read(values: dict[str, Any]) -> dict[str, Any]:
    """Values as they are read back from the manifest's file, which has no secrets."""
    read: dict[str, Any] = without_secrets(json.loads(json.dumps(values, default=str)))
    return read


def read_manifest(directory: Path) -> dict[str, Any] | None:
    """The manifest in a directory; None if there is none, or it is not of a run."""
    try:
        found = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.keys() >= _KEYS and found["parts"] else None


def manifest_of(name: str | Path) -> dict[str, Any] | None:
    """The manifest of the run that saved a model, given its directory or a checkpoint; None for any other model."""
    return read_manifest(Path(name)) or read_manifest(Path(name).parent)


def write_manifest(directory: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest; at any moment the file on disk is a complete one."""
    write_text(directory / MANIFEST, json.dumps(as_read(manifest), indent=2) + "\n")


def data_section(manifest: dict[str, Any]) -> dict[str, Any]:
    """The section ``data`` of a run; relative paths are those of the directory in which it was started."""
    base = manifest.get("working_directory", "")
    return {name: absolute_at(("data", name), value, base) for name, value in manifest["config"]["data"].items()}


def new_part(manifest: dict[str, Any], step: int, changes: dict[str, str], launch: str) -> dict[str, Any]:
    """A part of a run's life, from its start or a resumption to its end.

    Args:
        manifest: of the run as it is now configured.
        step: the step of the checkpoint that it continues from, or 0.
        changes: what was changed before it, in words, by name.
        launch: what is the same for all that one torchrun starts; empty without torchrun.
    """
    return {
        "started": manifest["started"],
        "ended": None,
        "status": RUNNING,
        "from_step": step,
        "to_step": None,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "launch": launch,
        "world_size": world_size(),
        "device": _device(manifest),
        "versions": manifest["versions"],
        "git_commit": manifest["git_commit"],
        "changes": changes,
    }


def _device(manifest: dict[str, Any]) -> str:
    """The device of the first process."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None or manifest["config"]["train"].get("use_cpu"):
        threads = torch.get_num_threads()
        return f"CPU ({platform.machine()}, {threads} thread{'s' if threads > 1 else ''})"
    named = getattr(torch.get_device_module(accelerator), "get_device_name", None)
    return str(named()) if named else accelerator.type


def now() -> str:
    """The time, in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def versions(plugins: PluginSet) -> dict[str, str]:
    """Versions of sftkit, Python, the libraries of the core, and those that the plugins require."""
    found = {"sftkit": metadata.version(DISTRIBUTION), "python": platform.python_version()}
    required = [Requirement(text).name for item in plugins.selected for text in item.plugin.requires]
    for name in dict.fromkeys((*LIBRARIES, *required)):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of the working directory, with ``-dirty`` where there are changes; None outside of a repository."""
    try:
        run = subprocess.run(
            ["git", *NO_PROGRAMS, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None if run.returncode == 0 else None
