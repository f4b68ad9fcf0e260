"""The results of a card: planned, filled in one by one, and written after each so that nothing measured is lost."""

from __future__ import annotations

import copy
import json
import os
import re
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gpu import head
from gpu.cases import SETTINGS, TRL, Case
from gpu.correctness import BAD
from gpu.report import page
from gpu.targets import targets

WAITING = {"status": "not reached"}
#: What is run again: it failed, or there was no time for it.
OPEN = ("failed", "not reached")
#: Kinds of results, by the part of a run that fills them.
MEASURED = ("step", "head", "profile")


class Results:
    """The results of one card.

    Args:
        card: its name.
        directory: for both files.
        base: results to go on from.

    Attributes:
        data: as it is written; entries of `MEASURED` have a ``status``: done, failed, missing or not reached.
    """

    def __init__(self, card: str, directory: Path, base: dict[str, Any] | None = None) -> None:
        empty: dict[str, Any] = {"card": card, "runs": [], "tests": {}, "step": {}, "head": {}, "profile": {}}
        self.data = copy.deepcopy(base) if base else empty
        self._directory = directory
        self._merged = base is not None
        self._stem = ""

    def begin(self, run: dict[str, Any], planned: Iterable[Case]) -> None:
        """Start a run: what it will measure is entered as not reached."""
        now = datetime.now(timezone.utc)
        self.data["runs"].append({"when": now.isoformat(timespec="seconds"), **run, "parts": {}})
        for name in (case.name for case in planned):
            self.data["step"].setdefault(name, dict(WAITING))
        for name in head.LOSSES:
            self.data["head"].setdefault(name, dict(WAITING))
        self.data["profile"] = self.data["profile"] or dict(WAITING)
        self._stem = f"gpu-{slug(self.data['card'])}-{now:%Y-%m-%d}"
        if not self._merged:  # another run of that day keeps its files
            taken = (path.stem for path in self._directory.glob(f"{self._stem}*.json"))
            number = sum(1 for _ in taken) + 1
            self._stem += f"-{number}" if number > 1 else ""
        self.save()

    @property
    def number(self) -> int:
        """Of the run under way."""
        return len(self.data["runs"]) - 1

    def add(self, part: str, name: str, found: dict[str, Any]) -> None:
        """Enter a result and write everything."""
        entry = {**found, "run": self.number}
        if part == "profile":
            self.data["profile"] = entry
        else:
            self.data[part][name] = entry
        self.save()

    def add_tests(self, found: dict[str, Any]) -> None:
        """Enter outcomes of tests and write everything."""
        self.data["tests"] |= {name: {**test, "run": self.number} for name, test in found.items()}
        self.save()

    def end_part(self, name: str, **values: Any) -> None:
        """Enter how a part ended."""
        self.data["runs"][-1]["parts"][name] = values
        self.save()

    def save(self) -> list[Path]:
        """Write the JSON file and the page; each is there as a whole, or as it was before."""
        add_ratios(self.data["step"])
        self.data["targets"] = list(targets(self.data["step"], self.data["head"]))
        self._directory.mkdir(parents=True, exist_ok=True)
        texts = {".json": json.dumps(self.data, indent=1) + "\n", ".md": page(self.data)}
        return [_write(self._directory / f"{self._stem}{suffix}", text) for suffix, text in texts.items()]

    def open_cases(self, planned: Iterable[Case], missing: Callable[[Case], str]) -> list[Case]:
        """The cases that are still to be measured, and TRL's where a setting of sftkit will be compared with it.

        Args:
            planned: all cases.
            missing: why a case cannot be measured, or an empty string.
        """
        planned = list(planned)
        found = [case for case in planned if self.data["step"].get(case.name, WAITING)["status"] != "done"]
        groups = {case.group for case in found if case.ours and not missing(case)}
        return [case for case in planned if case in found or (case.setting == TRL and case.group in groups)]

    def passed_tests(self) -> list[str]:
        """Tests that need not run again."""
        return [name for name, test in self.data["tests"].items() if test["outcome"] == "passed"]

    def drop_open_tests(self) -> None:
        """Forget tests that will run again, or that exist no more."""
        tests = self.data["tests"]
        self.data["tests"] = {name: test for name, test in tests.items() if test["outcome"] == "passed"}

    def problems(self) -> list[str]:
        """Everything that failed or was not reached, one a line."""
        lines = [
            f"{name}: {test['outcome']}" + (f": {test['reason']}" if "reason" in test else "")
            for name, test in self.data["tests"].items()
            if test["outcome"] in BAD
        ]
        lines += [] if self.data["tests"] else ["tests: not reached"]
        parts = self.data["runs"][-1]["parts"]
        lines += [f"{name}: {part['status']}: {part['reason']}" for name, part in parts.items() if "status" in part]
        entries = {**self.data["step"], **{f"loss head: {name}": value for name, value in self.data["head"].items()}}
        entries["profile"] = self.data["profile"]
        lines += [
            f"{name}: {entry['status']}" + (f": {entry['reason']}" if "reason" in entry else "")
            for name, entry in entries.items()
            if entry["status"] in OPEN
        ]
        return lines


def add_ratios(entries: dict[str, dict[str, Any]]) -> None:
    """How many times as fast as TRL each setting is: its default, and the fastest of its settings in the same run."""
    speeds: dict[tuple[str, int], dict[str, float]] = {}
    for name, entry in entries.items():
        case = Case.of(name)
        if entry["status"] == "done" and SETTINGS[case.setting]["kind"] == "trl":
            speeds.setdefault((case.group, entry["run"]), {})[case.setting] = entry["tokens_per_second"]
    for name, entry in entries.items():
        peers = speeds.get((Case.of(name).group, entry.get("run", -1)), {})
        if entry["status"] != "done" or not peers:
            continue
        if TRL in peers:
            entry["times_trl"] = round(entry["tokens_per_second"] / peers[TRL], 3)
        best = max(peers, key=lambda setting: peers[setting])
        entry["times_best_trl"], entry["best_trl"] = round(entry["tokens_per_second"] / peers[best], 3), best


def newest(card: str, directories: Iterable[Path]) -> dict[str, Any] | None:
    """The latest results of a card in some directories; files that cannot be read are passed over."""
    found = []
    for path in {path.resolve() for directory in directories for path in directory.glob(f"gpu-{slug(card)}-*.json")}:
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["card"] == card:
                found.append((data["runs"][-1]["when"], path.name, data))
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            print(f"{path.name} is passed over: {type(error).__name__}: {error}", flush=True)
    return max(found, key=lambda item: item[:2])[2] if found else None


def slug(card: str) -> str:
    """The name of a card in file names: ``NVIDIA H100 80GB HBM3`` is ``h100-80gb-hbm3``."""
    return "-".join(part for part in re.findall(r"[a-z0-9]+", card.lower()) if part != "nvidia")


def _write(path: Path, text: str) -> Path:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
    return path
