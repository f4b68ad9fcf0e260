"""One run on a card: its parts in order, each within its time, and what they find."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpu import cases, correctness, head
from gpu.cases import Case
from gpu.child import failure
from gpu.environment import environment
from gpu.jobs import Jobs
from gpu.model import lengths
from gpu.results import OPEN, Results, newest
from gpu.targets import verdict

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
#: Seconds of parts in a budget of 330; the step has what is left. Others scale with the budget.
BUDGET, TESTS, HEAD, PROFILE = 330, 120, 30, 40
CASE, LEAST = 100, 8  # the most that a setting may take, and the least time left in which one begins
PROFILED = 3  # steps


class Run:
    """One run: its time, its children, and its results."""

    def __init__(self, flags: argparse.Namespace, scratch: Path, jobs: Jobs) -> None:
        self._flags, self._scratch, self._jobs = flags, scratch, jobs
        self._started = time.monotonic()
        self._scale = flags.budget / BUDGET
        self._planned = list(cases.cases(flags.toy, flags.all))
        self._device: dict[str, Any] = {}
        self._rows, source = lengths()
        machine = environment(ROOT)
        card = (
            "toy-cpu" if flags.toy else machine.get("gpu", {}).get("name") or self._probed().get("card", "unknown GPU")
        )
        out = flags.out or (Path(tempfile.mkdtemp(prefix="sftkit-gpu-results-")) if flags.toy else RESULTS)
        base = newest(card, [out, RESULTS]) if flags.only else None
        if flags.only and base is None:
            self._say(f"there are no results of {card} yet: everything runs")
        self.results = Results(card, out, base)
        command = f"python scripts/gpu.py --budget {flags.budget:g}" + " --only failed" * bool(flags.only)
        command += " --all" * flags.all + " --toy" * flags.toy
        about = {"command": command, "environment": machine, "lengths": source, "start": "", "device": {"cuda": None}}
        self.results.begin(about, self._planned)

    def _say(self, text: str) -> None:
        print(f"[{time.monotonic() - self._started:5.1f} s] {text}", flush=True)

    def _left(self, reserved: float = 0.0) -> float:
        """Seconds of the budget, without those that later parts need."""
        return self._flags.budget - reserved * self._scale - (time.monotonic() - self._started)

    @contextmanager
    def _part(self, name: str) -> Iterator[dict[str, Any]]:
        """A part, whose time is noted however it ends; an error in it does not keep the others from running."""
        started, values = time.monotonic(), {"cut": True}
        try:
            yield values
            values["cut"] = values.pop("out_of_time", False)
        except Exception as error:
            values |= failure(error)
            self._say(f"{name}: {values['reason']}")
        finally:
            self.results.end_part(name, seconds=round(time.monotonic() - started, 1), **values)

    def everything(self) -> None:
        """All parts, in order."""
        with self._part("correctness") as part:
            self._correctness(part)
        with self._part("start"):
            self._probe()
        with self._part("step") as part:
            self._step(part)
        with self._part("head") as part:
            self._head(part)
        with self._part("profile") as part:
            self._profile(part)

    def _correctness(self, part: dict[str, Any]) -> None:
        passed = self.results.passed_tests() if self._flags.only else []
        if self._flags.only:
            self.results.drop_open_tests()
        limit = min(TESTS * self._scale, self._left())
        tests = ROOT / "tests" / "gpu"
        found = correctness.run(tests, self._scratch, limit, self._flags.toy, passed, self.results.add_tests)
        self.results.add_tests(found)
        part["out_of_time"] = any(test["outcome"] == correctness.NOT_REACHED for test in found.values())
        bad = sum(test["outcome"] in correctness.BAD for test in found.values())
        self._say(f"correctness: {len(found)} tests, {bad} failed or not reached, {len(passed)} passed before")

    def _probe(self) -> None:
        """Find out what the device is, and whether forks can use it."""
        found = self._probed()
        start = f"Settings are forks of a process that imported everything, in {found.get('preload_s')} s."
        if found["status"] != "done":
            start = f"Settings are fresh processes: forks cannot use the device ({found['reason']})."
            self._jobs.forks = False
            found = self._probed()
        problems = "; ".join(found.get("preload_problems", ()))
        self.results.data["runs"][-1]["start"] = start + (f" Not imported: {problems}." if problems else "")
        if found["status"] == "done":
            self.results.data["runs"][-1]["device"] = self._device = found
        self._say(f"device: {found.get('card') or found['reason']}. {start}")

    def _probed(self) -> dict[str, Any]:
        return self._jobs.run("probe", {"toy": self._flags.toy}, max(30.0, 60 * self._scale))

    @property
    def _on_gpu(self) -> bool:
        return not self._flags.toy

    def _missing(self, case: Case) -> str:
        return cases.missing(case, self._on_gpu, self._device.get("gib", 1e9))

    def _step(self, part: dict[str, Any]) -> None:
        for case in self.results.open_cases(self._planned, self._missing):
            name, left = case.name, self._left(HEAD + PROFILE)
            before = self.results.data["step"][name]
            if why := self._missing(case):
                self._enter("step", name, {"status": "missing", "reason": why}, before)
            elif left < LEAST:
                part["out_of_time"] = True
                self._enter("step", name, {"status": "not reached", "reason": "no time was left"}, before)
            else:
                self._enter("step", name, self._measure(case, left), before)

    def _measure(self, case: Case, left: float, profiled: int = 0) -> dict[str, Any]:
        spec = cases.spec_of(case, self._rows, "", "cuda" if self._on_gpu else "cpu", profiled)
        fresh = case.setting == cases.UNSLOTH
        return self._bounded("step", {"spec": spec}, left, fresh)

    def _bounded(self, job: str, values: dict[str, Any], left: float, fresh: bool = False) -> dict[str, Any]:
        """A job within the time left; one that only the end of its part has cut off was not reached."""
        limit = CASE * self._scale
        found = self._jobs.run(job, values, min(left, limit), fresh)
        if found.get("timed_out") and left < limit:
            found |= {"status": "not reached", "reason": f"cut off after {left:.0f} s, at the end of its part"}
        return found

    def _enter(self, part: str, name: str, found: dict[str, Any], before: dict[str, Any]) -> None:
        """Enter a result, unless it is a failure where there was a figure before."""
        if found["status"] == "done" or before["status"] != "done":
            self.results.add(part, name, found)
        speed = f"{found['tokens_per_second']:,.0f} tokens/s" if "tokens_per_second" in found else ""
        milliseconds = f"{found['trained']['ms']:,.1f} ms" if "trained" in found else ""
        reason = f": {found['reason']}" if "reason" in found else ""
        self._say(f"{part}, {name}: {speed or milliseconds or found['status']}{reason}")

    def _head(self, part: dict[str, Any]) -> None:
        sizes = {**(head.SIZES if self._on_gpu else head.TOY_SIZES), "device": "cuda" if self._on_gpu else "cpu"}
        for name in head.LOSSES:
            left, before = self._left(PROFILE), self.results.data["head"][name]
            if before["status"] == "done":
                continue
            if why := head.missing(name, self._on_gpu):
                found = {"status": "missing", "reason": why}
            elif left < LEAST:
                part["out_of_time"] = True
                found = {"status": "not reached", "reason": "no time was left"}
            else:
                found = self._bounded("head", {"name": name, **sizes}, left)
            self._enter("head", name, found, before)

    def _profile(self, part: dict[str, Any]) -> None:
        """Profile the fastest of sftkit's settings on the small model; the first that can run where none has."""
        before, left = self.results.data["profile"], self._left()
        if before["status"] not in OPEN:
            return
        group = next(case.group for case in self._planned if case.ours)
        ours = [case for case in self._planned if case.ours and case.group == group and not self._missing(case)]
        entries = self.results.data["step"]
        case = max(ours, key=lambda case: entries[case.name].get("tokens_per_second", 0.0))
        if left < LEAST:
            part["out_of_time"] = True
            found: dict[str, Any] = {"status": "not reached", "reason": "no time was left"}
        else:
            found = self._measure(case, left, PROFILED)
        self._enter("profile", case.name, {**found, "name": case.name}, before)

    def finish(self) -> int:
        """Say what came out; the exit code."""
        problems = self.results.problems()
        for problem in problems:
            self._say(f"open, {problem}")
        for target in self.results.data["targets"]:
            value = "" if target["value"] is None else f": {target['value']:,.4g}"
            self._say(f"target, {target['target']}{value}, {verdict(target)}")
        for path in self.results.save():
            self._say(f"written: {path}")
        return 1 if problems else 0
