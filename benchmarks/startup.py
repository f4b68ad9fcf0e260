"""How soon commands answer: sftkit beside TRL and the bare import of transformers' Trainer, taking turns.

    python benchmarks/startup.py [--quick] [--json]

Each is a process of its own, with a cache of this benchmark's. ``check`` and ``preview`` have the embedded data, which
is prepared; the first row of new data is that of 100,000 rows; the first step is the first that is logged, of the
embedded default and of `trl sft` on the same rows and a model of that size. A first round, which fills the file cache
and sftkit's own, does not count. Machines differ and are shared: the ratio counts, measured in one run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _report import median, parse_flags, program, report, versions

TARGET_SECONDS, TARGET_RATIO = 0.3, 15.0
HELP, RUN_HELP, PLUGINS, PEER = "sftkit --help", "sftkit run --help", "sftkit plugins", "trl sft --help"
CHECK, PREVIEW = "sftkit check, prepared data", "sftkit preview, prepared data"
ROW, STEP, PEER_STEP = "sftkit preview, first row of new data", "sftkit run, first step", "trl sft, first step"
FLOOR = "import of transformers' Trainer"
#: The most seconds of each on two idle cores.
TARGETS = {HELP: TARGET_SECONDS, CHECK: 1.5, PREVIEW: 1.5, STEP: 6.0}
NEW_ROWS = 100_000


@dataclass(frozen=True)
class Command:
    """A command to time.

    Attributes:
        words: the program and its arguments.
        until: a text in what it prints at which it has answered; empty if it is timed to its end.
        fresh: whether it gets a cache of its own, in which nothing is prepared.
    """

    words: list[str]
    until: str = ""
    fresh: bool = False


@dataclass
class Times:
    """What one command took, in seconds, each time: on the clock, and of the processors."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def timed(command: Command, directory: Path) -> tuple[float, float]:
    """Seconds on the clock and of the processors until a process has answered; it must, or they mean nothing."""
    with tempfile.TemporaryDirectory(dir=directory) as own:
        cache = own if command.fresh else str(directory / "cache")
        variables = {**os.environ, "SFTKIT_CACHE": cache, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        printed = Path(own, "printed")
        started = time.perf_counter()
        with printed.open("w") as file:
            process = subprocess.Popen(command.words, stdout=file, stderr=file, cwd=own, env=variables)
        answered = _answered(process, printed, command.until) if command.until else None
        if answered is not None:
            process.kill()
        _, status, used = os.wait4(process.pid, 0)
        took = time.perf_counter() - started if answered is None else answered - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if answered is None and (command.until or process.returncode):
            sys.exit(f"error: {' '.join(command.words)} has failed:\n{printed.read_text()}")
        return took, used.ru_utime + used.ru_stime


def _answered(process: Any, printed: Path, until: str) -> float | None:
    """When the text was printed, without waiting for the end; None if the process ends without it."""
    while until not in printed.read_text():
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return time.perf_counter() if until in printed.read_text() else None
        time.sleep(0.005)
    return time.perf_counter()


def commands(directory: Path) -> dict[str, Command]:
    """Everything that is timed, with the files that it needs."""
    from sftkit import demo

    sftkit, trl = program("sftkit"), program("trl")
    new = directory / "new.jsonl"
    with new.open("w") as file:
        for at in range(NEW_ROWS):
            file.write(json.dumps({"prompt": f"What follows {at}?", "completion": f" {at + 1} follows {at}."}) + "\n")
    model = directory / "model"
    # by the same Python, whose modules this process need not hold
    make = "import sys; from sftkit.testing import *; t = tiny_tokenizer(chat_template=CHATML)\n"
    make += "tiny_model().save_pretrained(sys.argv[1]); t.save_pretrained(sys.argv[1])"
    subprocess.run([sys.executable, "-c", make, str(model)], check=True, capture_output=True)
    data = directory / "data"
    data.mkdir()
    (data / "train.jsonl").write_text(Path(demo.TRAIN).read_text(encoding="utf-8"), encoding="utf-8")
    step = ["train.logging_steps=1"]
    peer = ["--model_name_or_path", str(model), "--dataset_name", str(data), "--output_dir", "out", "--use_cpu"]
    peer += ["--logging_steps", "1", "--report_to", "none", "--bf16", "False"]
    return {
        HELP: Command([sftkit, "--help"]),
        RUN_HELP: Command([sftkit, "run", "--help"]),
        PLUGINS: Command([sftkit, "plugins"]),
        PEER: Command([trl, "sft", "--help"]),
        CHECK: Command([sftkit, "check"]),
        PREVIEW: Command([sftkit, "preview"]),
        ROW: Command([sftkit, "preview", "-m", "demo", "-d", str(new)], until="row 1 ", fresh=True),
        STEP: Command([sftkit, "run", *step], until=" · loss "),
        PEER_STEP: Command([trl, "sft", *peer], until="'loss'"),
        FLOOR: Command([sys.executable, "-c", "import torch; from transformers import Trainer"]),
    }


def measure(chosen: Mapping[str, Command], directory: Path, rounds: int, budget: float) -> dict[str, Times]:
    """The times of each command, all of them run once a round.

    Args:
        chosen: the commands by name.
        directory: with their files.
        rounds: how many, at most.
        budget: seconds after which no further round begins; one is always run.
    """
    end = time.monotonic() + budget
    for command in chosen.values():
        if not command.fresh:
            timed(command, directory)
    taken = {name: Times() for name in chosen}
    done = 0
    while done < rounds and (not done or time.monotonic() < end):
        for name, command in chosen.items():
            wall, cpu = timed(command, directory)
            taken[name].wall.append(wall)
            taken[name].cpu.append(cpu)
        done += 1
    return taken


def main() -> None:
    flags = parse_flags(__doc__.splitlines()[0])
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        taken = measure(commands(directory), directory, *((2, 20.0) if flags.quick else (9, 900.0)))
    took = {name: median(times.wall) for name, times in taken.items()}
    cpu = {name: median(times.cpu) for name, times in taken.items()}
    peers = dict.fromkeys((HELP, RUN_HELP, PLUGINS), PEER) | {STEP: PEER_STEP}
    ratio = {name: round(took[peer] / took[name], 1) for name, peer in peers.items()}
    helps = {"help": HELP, "run_help": RUN_HELP, "plugins": PLUGINS, "first_step": STEP}
    result: dict[str, Any] = {
        name: {"sftkit": took[key], "trl": took[peers[key]], "ratio": ratio[key]} for name, key in helps.items()
    }
    result |= {"check": took[CHECK], "preview": took[PREVIEW], "first_row": took[ROW], "trainer_import": took[FLOOR]}
    result["cpu"] = cpu
    stack = versions("sftkit-train", "trl", "transformers", "torch")
    rows = [
        [name, f"{took[name]:.3f}", f"{cpu[name]:.3f}", str(ratio.get(name, "")), str(TARGETS.get(name, ""))]
        for name in took
    ]
    title = f"Start-up, median of {len(taken[HELP].wall)} ({stack})"
    columns = ("command", "seconds", "of the processors", "times faster than trl", "target, at most")
    report(result, title, columns, rows, flags.json)
    if not flags.json:
        missed = [name for name, most in TARGETS.items() if took[name] > most]
        missed += [HELP] if ratio[HELP] < TARGET_RATIO and HELP not in missed else []
        print(f"targets: {'missed by ' + '; '.join(missed) if missed else 'met'}")


if __name__ == "__main__":
    main()
