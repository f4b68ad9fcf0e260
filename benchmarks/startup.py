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
PLUGINS = "sftkit plugins"


def seconds(command: list[str]) -> float:
    """Wall time of one process; it must succeed, or the time means nothing."""
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    took = time.perf_counter() - started
    if done.returncode != 0:
        sys.exit(f"error: {' '.join(command)} ended with exit code {done.returncode}:\n{done.stderr}")
    return took


def measure(commands: dict[str, list[str]], rounds: int) -> dict[str, float]:
    """The median seconds of each command, all of them run once a round."""
    for command in commands.values():
        seconds(command)
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            taken[name].append(seconds(command))
    return {name: median(values) for name, values in taken.items()}


def main() -> None:
    flags = parse_flags(__doc__.splitlines()[0])
    sftkit, trl = program("sftkit"), program("trl")
    commands = {
        "sftkit --help": [sftkit, "--help"],
        "sftkit run --help": [sftkit, "run", "--help"],
        PLUGINS: [sftkit, "plugins"],
        "trl sft --help": [trl, "sft", "--help"],
    }
    rounds = 3 if flags.quick else 9
    took = measure(commands, rounds)
    ratio = {name: round(took["trl sft --help"] / value, 1) for name, value in took.items()}
    result = {
        "help": {"sftkit": took["sftkit --help"], "trl": took["trl sft --help"], "ratio": ratio["sftkit --help"]},
        "run_help": {"sftkit": took["sftkit run --help"], "ratio": ratio["sftkit run --help"]},
        "plugins": {"sftkit": took[PLUGINS], "ratio": ratio[PLUGINS]},
        "targets": {"seconds": TARGET_SECONDS, "ratio": TARGET_RATIO},
        "rounds": rounds,
        "versions": versions("sftkit", "trl", "transformers", "torch"),
    }
    rows = [[name, f"{value:.3f}", f"{ratio[name]:.1f}"] for name, value in took.items()]
    title = f"Start-up, median of {rounds} ({result['versions']})"
    report(result, title, ("command", "seconds", "times faster than trl"), rows, flags.json)
    if not flags.json:
        met = took["sftkit --help"] <= TARGET_SECONDS and ratio["sftkit --help"] >= TARGET_RATIO
        told = "met" if met else "missed"
        print(f"target for `sftkit --help`: at most {TARGET_SECONDS} s and {TARGET_RATIO:.0f} times faster: {told}")


if __name__ == "__main__":
    main()
