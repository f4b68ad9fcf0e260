"""The second half of `soak.py`: runs that are killed at random moments and resumed, beside one that is not disturbed."""

from __future__ import annotations

import random
import re
import shutil
import signal
import time
from collections import Counter
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from _soak_endurance import last_line, read_lines, write_run

from sftkit.checkpoints.publish import PARTIAL
from sftkit.testing import tiny_model
from sftkit.testing.processes import WAIT, Command, start_command

SAVE_STEPS = 3  # so that many moments are within a save
DROPOUTS = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}
TRAIN = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "save_strategy": "steps",
    "save_steps": SAVE_STEPS,
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "use_cpu": True,
}


@dataclass
class Kill:
    """A kill, and what became of the run.

    Attributes:
        number: counted from 1.
        moment: ``start``, ``step`` or ``save``: what the run did when it was killed, as far as its files show.
        step: the last step that it had logged.
        outcome: ``equal``, or in words what the resumed run did instead.
    """

    number: int
    moment: str
    step: int
    outcome: str = "equal"


class Kills:
    """Kills and resumes runs until there were enough kills.

    Args:
        context: of the processes.
        directory: an empty directory.
        steps: of each run; when one is done, the next begins.
        seed: of the moments.
        streaming: whether the data is a stream.
    """

    def __init__(self, context: Any, directory: Path, steps: int, seed: int, streaming: bool) -> None:
        self.context, self.directory, self.random = context, directory, random.Random(seed)
        sections: dict[str, Any] = {"train": {**TRAIN, "max_steps": steps}, "plugins": {"packing": {}, "neftune": {}}}
        if streaming:
            sections["data"] = {"streaming": True, "window": 64, "shuffle_buffer": 50}
        self.config = write_run(directory, tiny_model("gpt2", **DROPOUTS), 60, sections)
        self.steps, self.parts, self.found, self.runs_done = steps, 0, list[Kill](), 0
        self.losses: dict[int, float] = {}
        self.weights, self.start_up, self.per_step = "", 0.0, 0.0

    def reference(self) -> None:
        """The run that nothing disturbs.

        Raises:
            RuntimeError: if it fails.
        """
        began, run = time.monotonic(), self.directory / "whole"
        command = self._start(run)
        while command.running and not read_lines(run / "log.jsonl"):
            time.sleep(0.01)
        self.start_up = time.monotonic() - began
        if command.wait(3600) != 0:
            raise RuntimeError(f"the undisturbed run fails: {last_line(command.output)}")
        self.per_step = (time.monotonic() - began - self.start_up) / self.steps
        self.losses, self.weights = losses(run), digest(run)
        print(f"  undisturbed: {self.steps:,} steps in {time.monotonic() - began:.0f} s", flush=True)

    def run(self, wanted: int, seconds: float) -> dict[str, Any]:
        """Kill until there were enough kills or the time is over.

        Returns:
            The result, with ``problems``: each in words.
        """
        began = time.monotonic()
        self.reference()
        name = 0
        while len(self.found) < wanted and time.monotonic() - began < seconds:
            name += 1
            self._disturbed(self.directory / f"killed-{name}", wanted, began + seconds)
        outcomes = Counter(kill.outcome for kill in self.found)
        problems = [
            f"{number} of {len(self.found)} kills: {what}" for what, number in outcomes.items() if what != "equal"
        ]
        if len(self.found) < wanted:
            problems.append(f"only {len(self.found)} kills in the given time")
        return {
            "seconds": round(time.monotonic() - began, 1),
            "kills": len(self.found),
            "equal": outcomes["equal"],
            "runs": self.runs_done,
            "moments": dict(Counter(kill.moment for kill in self.found)),
            "outcomes": dict(outcomes),
            "each": [asdict(kill) for kill in self.found],
            "problems": problems,
        }

    def _disturbed(self, run: Path, wanted: int, end: float) -> None:
        """One run, killed and resumed until it is done or lost.

        Once there were enough kills, it is left to go on to its end, which is compared, too.
        """
        command = self._start(run)
        while True:
            if not self._killed(command, run, wanted, end):
                self._compare_end(command, run)
                return
            self.found.append(kill := Kill(len(self.found) + 1, *self._moment(run)))
            if kill.number % 10 == 0:
                print(f"  {kill.number} kills, {sum(kill.outcome == 'equal' for kill in self.found)} equal", flush=True)
            if not (run / "manifest.json").exists() or not any(run.glob("checkpoint-*")):  # there is nothing to resume
                shutil.rmtree(run, ignore_errors=True)
                command = self._start(run)
                continue
            command = self._resumed(run, kill)
            if kill.outcome == "another loss":
                command.end()
                return

    def _killed(self, command: Command, run: Path, wanted: int, end: float) -> bool:
        """Kill a command at a random moment; False if it ended before, or may end."""
        if len(self.found) >= wanted or time.monotonic() > end:
            command.process.join(3600)
            return False
        kind = self.random.choices(("start", "step", "save"), (15, 35, 50))[0]
        if kind == "start":
            time.sleep(self.random.uniform(0, self.start_up))
        else:
            goal = len(read_lines(run / "log.jsonl")) + self.random.randint(1, 10 * SAVE_STEPS)
            while command.running and len(read_lines(run / "log.jsonl")) < goal:
                time.sleep(0.002)
            before = entries_of(run)
            while kind == "save" and command.running and entries_of(run) == before:
                time.sleep(0.0005)
            wait = self.random.random()
            time.sleep(self.per_step * (wait**3 if kind == "save" else wait * SAVE_STEPS))
        if not command.running:
            return False
        command.send(signal.SIGKILL)
        command.wait()
        return True

    def _moment(self, run: Path) -> tuple[str, int]:
        """What the run did when it was killed, and its last step."""
        logged = [entry["step"] for entry in read_lines(run / "log.jsonl") if "loss" in entry]
        saving = any(run.glob(f"{PARTIAL}/checkpoint-*"))
        return ("save" if saving else "step" if logged else "start"), max(logged, default=0)

    def _resumed(self, run: Path, kill: Kill) -> Command:
        """The resumed command, when it has trained a step; if it fails, one that starts again."""
        entries = len(read_lines(run / "log.jsonl"))
        command, deadline = self._start(run, "--resume"), time.monotonic() + WAIT
        while command.running and len(read_lines(run / "log.jsonl")) == entries and time.monotonic() < deadline:
            time.sleep(0.005)
        if command.running or command.process.exitcode == 0:
            wrong = {step for step, loss in losses(run).items() if self.losses[step] != loss}
            if wrong:
                kill.outcome = "another loss"
                print(f"  kill {kill.number} ({kill.moment}): another loss at step {min(wrong)}", flush=True)
            return command
        kill.outcome = f"resuming fails: {shortened(last_line(command.output))}"
        print(f"  kill {kill.number} ({kill.moment}, step {kill.step}): {kill.outcome}", flush=True)
        shutil.rmtree(run)
        return self._start(run)

    def _compare_end(self, command: Command, run: Path) -> None:
        if command.process.exitcode != 0:
            what = f"the run fails: {shortened(last_line(command.output))}"
        elif losses(run) != self.losses:
            what = "another loss"
        elif digest(run) != self.weights:
            what = "other weights at the end"
        else:
            self.runs_done += 1
            shutil.rmtree(run)
            return
        print(f"  {run.name}: {what}", flush=True)
        if self.found:
            self.found[-1].outcome = what

    def _start(self, run: Path, *flags: str) -> Command:
        self.parts += 1
        printed = self.directory / f"printed-{self.parts}.txt"
        arguments = ["run", str(self.config), "-o", run.name, *flags]
        env = {"SFTKIT_CACHE": str(self.directory / "cache")}
        return start_command(self.context, arguments, cwd=self.directory, printed=printed, env=env)


def losses(run: Path) -> dict[int, float]:
    """The loss of each step; of a step that was repeated, the later one."""
    return {entry["step"]: entry["loss"] for entry in read_lines(run / "log.jsonl") if "loss" in entry}


def digest(run: Path) -> str:
    """A hash of the saved weights."""
    return sha256((run / "model.safetensors").read_bytes()).hexdigest()


def entries_of(run: Path) -> set[str]:
    """The names in the run's directory."""
    return {path.name for path in run.iterdir()} if run.exists() else set()


def shortened(text: str) -> str:
    """A message without numbers and paths, so that equal causes are counted together."""
    return re.sub(r"\d+", "N", re.sub(r"\S*/\S+", "PATH", text))[:160]
