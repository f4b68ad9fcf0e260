"""What is known of a sweep: its runs, their values and their outcome, in ``sweep.json``."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sftkit.api import ConfigError, Problem, SftkitError, json_text, read_run, write_text

FILE = "sweep.json"
CONFIGS = ".configurations"
DONE = "done"


@dataclass
class SweepRun:
    """One run.

    Attributes:
        name: of its directory in that of the sweep.
        parameters: the text of each value by key.
        status: ``waiting``, or that of its manifest; ``failed`` if it has none.
        metrics: its final metrics.
        error: why it is not done.
    """

    name: str
    parameters: dict[str, str]
    status: str = "waiting"
    metrics: dict[str, float] = field(default_factory=dict)
    error: str = ""

    def value(self, metric: str) -> float:
        """A metric; NaN if it has none."""
        found = self.metrics.get(metric)
        return float(found) if self.status == DONE and isinstance(found, int | float) else math.nan

    def read(self, directory: Path, code: int | None = None) -> None:
        """Read the outcome.

        Args:
            directory: of the sweep.
            code: the exit code of the run, if it has just ended.
        """
        try:
            manifest = read_run(directory / self.name)
        except SftkitError:
            self.status, self.error = "failed", f"exit code {code}; the reason is printed above"
            return
        self.status, self.metrics = manifest["status"], dict(manifest.get("metrics") or {})
        if self.status == "running":  # it was killed
            self.status = "interrupted"
        if code == 0 or code is None:
            self.error = ""
        else:
            self.status = "interrupted" if self.status == "interrupted" else "failed"
            self.error = str(manifest.get("error") or f"exit code {code}")


@dataclass
class Sweep:
    """A sweep.

    Attributes:
        directory: of all its runs.
        space: what varies, as plain data.
        metric: what the runs are compared by.
        maximize: whether a larger value is better.
        runs: in the order in which they are run.
    """

    directory: Path
    space: dict[str, Any]
    metric: str
    maximize: bool
    runs: list[SweepRun] = field(default_factory=list)

    def ranked(self) -> list[SweepRun]:
        """The runs, the best first; those without the metric last."""

        def rank(run: SweepRun) -> tuple[bool, float]:
            value = run.value(self.metric)
            return math.isnan(value), -value if self.maximize else value

        return sorted(self.runs, key=rank)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for ``sweep.json`` and ``--json``; the runs are ranked."""
        made = {"directory": str(self.directory), "metric": self.metric, "maximize": self.maximize, "space": self.space}
        runs = [{**asdict(run), "directory": str(self.directory / run.name)} for run in self.ranked()]
        return {**made, "runs": runs}

    def write(self) -> None:
        """Write ``sweep.json``; at any moment the file on disk is a complete one."""
        self.directory.mkdir(parents=True, exist_ok=True)
        write_text(self.directory / FILE, json_text(self.as_dict(), indent=2) + "\n")

    def write_config(self, run: SweepRun, text: str) -> Path:
        """Write the configuration of a run, and return its path."""
        path = self.directory / CONFIGS / f"{run.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def finished(self, run: SweepRun, text: str) -> bool:
        """Whether a run is done with this configuration; its outcome is then known."""
        path = self.directory / CONFIGS / f"{run.name}.yaml"
        if not path.is_file() or path.read_text(encoding="utf-8") != text or not (self.directory / run.name).is_dir():
            return False
        run.read(self.directory)
        return run.status == DONE


def check_directory(directory: Path, resume: bool) -> dict[str, Any] | None:
    """The earlier part of the sweep in a directory, if there is one.

    Raises:
        ConfigError: if there is none to resume, or the directory has other files.
    """
    file = directory / FILE
    if resume:
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            return found
        except (OSError, ValueError):
            fix = "name the directory of the sweep with --output"
            raise ConfigError(Problem("there is no sweep to resume", str(directory), fix)) from None
    if file.is_file():
        fix = "continue it with --resume, or choose another --output DIR"
        raise ConfigError(Problem("the output directory holds a sweep already", str(directory), fix))
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        fix = "choose an empty or a new directory"
        raise ConfigError(Problem("the output directory is not empty, and does not hold a sweep", str(directory), fix))
    return None
