"""How long the help of a command takes: sftkit beside TRL, taking turns.

    python benchmarks/startup.py [--quick] [--json]

Each is a process of its own, timed from outside, from start to end; the first one of each, which fills the file
cache, does not count. Machines differ and are shared: the ratio counts, measured in one run.
"""

from __future__ import annotations

import subprocess
import sys
import time

from _report import median, parse_flags, program, report, versions

TARGET_SECONDS = 0.3
TARGET_RATIO = 15.0
HELP, RUN_HELP, PLUGINS, PEER = "sftkit --help", "sftkit run --help", "sftkit plugins", "trl sft --help"


def seconds(command: list[str]) -> float:
    """Wall time of one process; it must succeed, or the time means nothing."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    took = time.perf_counter() - started
    if done.returncode != 0:
        sys.exit(f"error: {' '.join(command)} ended with exit code {done.returncode}:\n{done.stderr}")
    return took


def measure(commands: dict[str, list[str]], rounds: int, budget: float) -> tuple[dict[str, float], int]:
    """The median seconds of each command, all of them run once a round, and the number of rounds.

    Args:
        rounds: how many, at most.
        budget: seconds after which no further round begins; one is always run.
    """
    end = time.monotonic() + budget
    for command in commands.values():
        seconds(command)
    taken: dict[str, list[float]] = {name: [] for name in commands}
    while len(taken[PEER]) < rounds and (not taken[PEER] or time.monotonic() < end):
        for name, command in commands.items():
            taken[name].append(seconds(command))
    return {name: median(values) for name, values in taken.items()}, len(taken[PEER])


def main() -> None:
    flags = parse_flags(__doc__.splitlines()[0])
    sftkit, trl = program("sftkit"), program("trl")
    commands = {
        HELP: [sftkit, "--help"],
        RUN_HELP: [sftkit, "run", "--help"],
        PLUGINS: [sftkit, "plugins"],
        PEER: [trl, "sft", "--help"],
    }
    took, rounds = measure(commands, *((3, 25.0) if flags.quick else (9, 600.0)))
    ratio = {name: round(took[PEER] / value, 1) for name, value in took.items()}
    result = {
        name: {"sftkit": took[command], "trl": took[PEER], "ratio": ratio[command]}
        for name, command in (("help", HELP), ("run_help", RUN_HELP), ("plugins", PLUGINS))
    }
    stack = versions("sftkit-train", "trl", "transformers", "torch")
    rows = [[name, f"{value:.3f}", f"{ratio[name]:.1f}"] for name, value in took.items()]
    title = f"Start-up, median of {rounds} ({stack})"
    columns = ("command", "seconds", "times faster than trl")
    report(result, title, columns, rows, flags.json)
    if not flags.json:
        verdict = "met" if took[HELP] <= TARGET_SECONDS and ratio[HELP] >= TARGET_RATIO else "missed"
        print(f"target of `{HELP}`, at most {TARGET_SECONDS} s and {TARGET_RATIO:.0f} times faster: {verdict}")


if __name__ == "__main__":
    main()
