"""The run directory and its manifest: what was run, with which data and versions, and the outcome."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement

from sftkit import DISTRIBUTION
from sftkit.config.train_fields import data_seed, train_value
from sftkit.errors import Problem, RunError
from sftkit.run.distributed import is_main_process

if TYPE_CHECKING:
    from sftkit.config import RunConfig
    from sftkit.plugin.selected import PluginSet

MANIFEST = "manifest.json"
DONE = "done"  # the status of a finished run
CHECKPOINT = re.compile(r"^checkpoint-(\d+)$")
NO_PROGRAMS = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=")  # a repository's settings may name some to run
LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "tokenizers", "pluggy", "safetensors")


def default_directory() -> str:
    """A new directory under ``runs``, named by the time."""
    return f"runs/{datetime.now():%Y%m%d-%H%M%S}"


@dataclass(frozen=True)
class RunDirectory:
    """The directory of one run."""

    path: Path

    def check(self, resume: bool, overwrite: bool) -> list[Problem]:
        """Problems of running in this directory; checked before anything is loaded."""
        where = str(self.path)
        if resume and overwrite:
            return [Problem("--resume and --overwrite cannot be used together", where, "choose one")]
        if not is_main_process():
            return []
        try:
            where.encode()  # not so if the locale lacks the characters of the name, which libraries need as UTF-8
            return self._problems(where, resume, overwrite)
        except (OSError, ValueError) as error:  # such as a name that is too long
            return [Problem(f"the directory cannot be used: {error}", repr(where), "choose another --output DIR")]

    def _problems(self, where: str, resume: bool, overwrite: bool) -> list[Problem]:
        if resume:
            return self._check_resume()
        if self.path.exists() and not self.path.is_dir():
            return [Problem("the output is a file", where, "choose a directory")]
        if self.path.is_dir() and any(self.path.iterdir()):
            if not (self.path / MANIFEST).exists():
                fix = "choose an empty or a new directory; --overwrite replaces only a run"
                return [Problem("the output directory is not empty, and does not hold a run", where, fix)]
            if not overwrite:
                fix = "continue it with --resume, replace it with --overwrite, or choose another --output DIR"
                return [Problem("the output directory holds a run already", where, fix)]
        parent = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not os.access(parent, os.W_OK):
            return [Problem(f"{parent} is not writable", where, "choose another directory")]
        return []

    def _check_resume(self) -> list[Problem]:
        if not (self.path / MANIFEST).exists():
            return [Problem("there is no run to resume", str(self.path), "name the run's directory with --output")]
        if self.last_checkpoint() is None and self.read()["status"] != DONE:
            return [self._no_checkpoint()]
        return []

    def _no_checkpoint(self) -> Problem:
        fix = "start again with --overwrite, and set train.save_steps to get checkpoints"
        return Problem("the run has no checkpoint to resume from", str(self.path), fix)

    def finished(self, manifest: dict[str, Any]) -> dict[str, float] | None:
        """The metrics of the run that is there, if it is finished and has this configuration and data; else None.

        Args:
            manifest: of the run that resumes it.

        Raises:
            RunError: if other data or plugins prevent that it is resumed, or it has no checkpoint to continue from.
        """
        if not (self.path / MANIFEST).exists():  # of a process on another machine
            return None
        there = self.read()
        if there["status"] != DONE:
            return None
        if problems := list(changes(there, manifest)):
            raise RunError(problems)
        if _without_directory(there["config"]) == _without_directory(manifest["config"]):
            metrics: dict[str, float] = there["metrics"]
            return metrics
        if self.last_checkpoint() is None:
            raise RunError(self._no_checkpoint())
        return None

    def last_checkpoint(self) -> str | None:
        """The newest checkpoint's path."""
        found = {int(name[1]): path for path in self.path.iterdir() if (name := CHECKPOINT.match(path.name))}
        return str(found[max(found)]) if found else None

    def read(self) -> dict[str, Any]:
        """The manifest of the run that is there."""
        return json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))

    def begin(self, manifest: dict[str, Any], resume: bool) -> None:
        """Prepare the directory: an earlier run is removed unless it is resumed.

        Raises:
            RunError: if the run to resume was made with another configuration or other data.
        """
        if not is_main_process():
            return
        if resume:
            problems = list(changes(self.read(), manifest))
            if problems:
                raise RunError(problems)
        elif (self.path / MANIFEST).exists():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.write(manifest)

    def write(self, manifest: dict[str, Any]) -> None:
        """Write the manifest atomically."""
        if is_main_process():
            partial = self.path / f".{MANIFEST}.partial"
            partial.write_text(json.dumps(manifest, indent=2, default=str) + "\n", encoding="utf-8")
            partial.replace(self.path / MANIFEST)


def _without_directory(config: dict[str, Any]) -> Any:
    train = {name: value for name, value in config["train"].items() if name != "output_dir"}
    return json.loads(json.dumps({**config, "train": train}, default=str))


def new_manifest(config: RunConfig, plugins: PluginSet, data: dict[str, Any]) -> dict[str, Any]:
    """The manifest at the start of a run."""
    return {
        "status": "running",
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "config": config.model_dump(mode="json"),
        "plugins": {
            item.name: {"distribution": item.distribution, "version": item.version} for item in plugins.selected
        },
        "data": data,
        "seeds": {"seed": train_value(config, "seed"), "data_seed": data_seed(config)},
        "versions": versions(plugins),
        "git_commit": git_commit(),
        "metrics": {},
    }


def changes(old: dict[str, Any], new: dict[str, Any]) -> Iterable[Problem]:
    """Differences in configuration or data between a run and its resumption."""
    fix = "resume with the original configuration and data, or start again with --overwrite"
    for section in ("model", "data", "plugins"):
        before, after = old["config"][section], new["config"][section]
        if before != after:
            keys = sorted(k for k in {*before, *after} if before.get(k) != after.get(k))
            changed = "; ".join(f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in keys)
            yield Problem(f"the configuration has changed: {changed}", section, fix)
    for split, counts in new["data"].items():
        known = old["data"].get(split, {})
        if known.get("fingerprint") != counts["fingerprint"]:
            yield Problem(_changed_data(known.get("rows"), counts.get("rows")), f"data.{split}", fix)


def _changed_data(before: int | None, after: int | None) -> str:
    if before is None or after is None:  # a stream has no number of rows
        return "the data has changed"
    if before == after:
        return f"the data has changed: it still has {after:,} rows, but other contents"
    return f"the data has changed: it has {after:,} rows, and had {before:,}"


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
