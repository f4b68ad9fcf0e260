"""What the directories of runs say, also of those that go on or were killed: manifests, logs, samples, rows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from sftkit.api import holder, read_run

Status = Literal["running", "done", "interrupted", "failed", "killed"]
LOG, SAMPLES, ROWS = "log.jsonl", "samples.jsonl", "rows.jsonl"
SAMPLES_SHOWN = 20
TRAINED = "trained_tokens_"  # before the name of a source


@dataclass(frozen=True)
class Run:
    """One run, as its directory describes it now.

    Attributes:
        name: of the directory; of several runs of the same name, with its parents.
        directory: the run's directory.
        manifest: its manifest.
        status: ``killed`` if the manifest says that it is running, and no process holds its directory.
        log: the entries of its log in order, without those that a resumed run has logged again.
        samples: completions of held-out rows.
        rows: some prepared rows.
        unread: how many lines of its files could not be read.
    """

    name: str
    directory: Path
    manifest: dict[str, Any]
    status: Status
    log: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)
    unread: int = 0

    @property
    def steps(self) -> int:
        """The last step that is known."""
        ended = [part.get("to_step") or 0 for part in self.manifest["parts"]]
        return max([*ended, *(int(entry["step"]) for entry in self.log[-1:])], default=0)

    @property
    def resumed(self) -> list[int]:
        """The steps from which later parts of the run continued."""
        return [int(part["from_step"]) for part in self.manifest["parts"][1:]]

    @property
    def seconds(self) -> float:
        """How long the parts of the run took together, up to now or to their last sign of life."""
        return sum(self.seconds_of(part) for part in self.manifest["parts"])

    def seconds_of(self, part: dict[str, Any]) -> float:
        """How long a part of the run took."""
        begun = as_time(part["started"])
        if part.get("ended"):
            return max(as_time(part["ended"]) - begun, 0.0)
        later = [as_time(other["started"]) for other in self.manifest["parts"] if as_time(other["started"]) > begun]
        until = min(later, default=math.inf)
        if self.status == "running" and until == math.inf:
            return max(datetime.now(timezone.utc).timestamp() - begun, 0.0)
        return max([entry["time"] - begun for entry in self.log if begun <= entry["time"] < until], default=0.0)

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the model that was saved; of a run that has not ended, the last ones that it has logged."""
        if self.manifest.get("metrics"):
            return dict(self.manifest["metrics"])
        found: dict[str, float] = {}
        for entry in self.log:
            for name, value in entry.items():
                if is_metric(name):
                    if entry["step"] == 0 and name.startswith("eval_"):
                        found[f"{name}_before"] = value
                    else:
                        found[name] = value
        return found

    @property
    def trained(self) -> dict[str, Any]:
        """The number of trained ``tokens`` so far, and the ``tokens`` and the last ``loss`` of each source."""
        last: dict[str, Any] = next((entry for entry in reversed(self.log) if "trained_tokens" in entry), {})
        sources = {}
        for name in (key.removeprefix(TRAINED) for key in last if key.startswith(TRAINED)):
            losses = [entry[f"loss_{name}"] for entry in self.log if f"loss_{name}" in entry]
            sources[name] = {"tokens": last[TRAINED + name], "loss": losses[-1] if losses else None}
        return {"tokens": last.get("trained_tokens", 0), "sources": sources}

    def summary(self) -> dict[str, Any]:
        """What ``--json`` says about it."""
        return {
            "name": self.name,
            "directory": str(self.directory),
            "status": self.status,
            "error": self.manifest.get("error"),
            "steps": self.steps,
            "seconds": round(self.seconds, 1),
            "metrics": self.metrics,
            "trained": self.trained,
        }


def is_metric(name: str) -> bool:
    """Whether a logged value is a metric of the model."""
    return name == "loss" or (name.startswith("eval_") and not name.endswith(("_runtime", "_per_second", "_time")))


def as_time(text: str) -> float:
    """Seconds since the epoch, of a time in a manifest."""
    return datetime.fromisoformat(text).timestamp()


def has_begun(directory: Path) -> bool:
    """Whether a run has begun in a directory."""
    return (directory / "manifest.json").is_file()


def is_held(directory: Path) -> bool:
    """Whether a process holds a directory: that of a run, or one that is about to begin or to resume it."""
    return holder(directory) is not None


def read_runs(directories: Sequence[Path]) -> list[Run]:
    """The runs in some directories, each once.

    Raises:
        ConfigError: if one of them holds no run.
    """
    places = list({path.resolve(): path for path in directories}.values())
    return [_read(path, name) for path, name in zip(places, _names(places), strict=True)]


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len({*names}) == len(names):
            return names
    return [str(path) for path in paths]


def _read(directory: Path, name: str) -> Run:
    manifest = read_run(directory)
    status: Status = manifest["status"]
    if status == "running" and not is_held(directory):
        status = "killed"
    entries, bad_entries = _lines(directory / LOG)
    samples, bad_samples = _lines(directory / SAMPLES)
    rows, bad_rows = _lines(directory / ROWS)
    entries = [entry for entry in entries if _is_number(entry.get("step")) and _is_number(entry.get("time"))]
    return Run(
        name,
        directory,
        manifest,
        status,
        without_repeats(entries, manifest["parts"]),
        [sample for sample in samples if isinstance(sample.get("completions"), list)][:SAMPLES_SHOWN],
        [row for row in rows if isinstance(row.get("runs"), list)],
        bad_entries + bad_samples + bad_rows,
    )


def _lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects in a file of JSON lines, and the number of lines that are none; one may be half written."""
    found, bad = [], 0
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")  # a text may have other line breaks
    except OSError:
        return [], 0
    for line in filter(None, lines):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            found.append(value)
        else:
            bad += 1
    return found, bad


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def without_repeats(log: Iterable[dict[str, Any]], parts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries without those of steps that were lost: a later part of the run has begun before them.

    Args:
        log: the entries in the order in which they were written.
        parts: of the run's life.
    """
    starts = [as_time(part["started"]) for part in parts]
    kept: list[dict[str, Any]] = []
    at = 0
    for entry in log:
        while at + 1 < len(parts) and entry["time"] >= starts[at + 1]:
            at += 1
            first = parts[at]["from_step"]
            kept = [one for one in kept if one["step"] <= first]
        kept.append(entry)
    return kept
