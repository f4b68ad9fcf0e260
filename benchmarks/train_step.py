"""A training step of sftkit, transformers' Trainer, TRL and plain loops, on the same model and rows.

    python benchmarks/train_step.py [--quick] [--json] [--shape NAME]... [--tiny] [--plugin NAME]... [--cpu-time]

Completion-only loss on Code Alpaca with the Llama 2 tokenizer in rows of at most 512 tokens, in float32, on a Llama of
hidden size 128 and 4 layers. The shapes: ``completions`` (vocabulary 32,000, batch 8), ``packed`` (4 packed rows), and
both with a vocabulary of 151,936. Each trainer runs in a separate process on the same tokenized rows in the same order.
They take turns, since machines are shared: only ratios within one run count. The time of a step is the median over the
steps after the first few; peak memory is that of the whole process with its imports, or of the GPU if there is one. On
a busy machine, ``OMP_NUM_THREADS=1`` and ``--cpu-time`` measure what other programs hardly disturb.

``--tiny`` measures the demo's steps instead: what they spend outside forward, backward and optimizer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["SFTKIT_CACHE"] = os.environ.get("SFTKIT_CACHE") or tempfile.mkdtemp(prefix="sftkit-bench-")

import _steps
import _tiny
from _report import add_flags, median, report, versions
from _steps import CPU_TIME, LIMIT, SHAPES, TRAINERS

#: How many times the peers' steps take, at least.
TARGETS = {"transformers": 2.5, "trl": 7.0, LIMIT: 0.95}
MOST_MEMORY = 1.05  # GB
MOST_OTHER = 0.15  # of a tiny step
TINY = ("sftkit", "sftkit, padded", "transformers")


def measure(*arguments: str) -> dict[str, Any]:
    """What a child process measures."""
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {arguments} ended with exit code {done.returncode}:\n{done.stderr[-3000:]}")
    return dict(json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))[7:]))


def measure_shape(name: str, flags: argparse.Namespace) -> dict[str, Any]:
    """The trainers by name, in turns."""
    shape, (steps, rounds) = SHAPES[name], (8, 1) if flags.quick else (28, 3)
    trainers = [*TRAINERS, *(["sftkit with plugins"] if flags.plugin else [])]
    found: dict[str, list[dict[str, Any]]] = {trainer: [] for trainer in trainers}
    plugins = [part for plugin in flags.plugin for part in ("--plugin", plugin)]
    with tempfile.TemporaryDirectory() as directory:
        _steps.write_rows(Path(directory), shape, steps)
        known = ["--shape", name, "--rows", directory, "--steps", str(steps), *plugins]
        for _ in range(rounds):
            for trainer in trainers:
                found[trainer].append(measure("--child", trainer, *known))
    results: dict[str, Any] = {}
    for trainer, runs in found.items():
        ms = 1e3 * median([seconds for run in runs for seconds in run["times"]])
        results[trainer] = {"ms": ms, "gb": max(run["gb"] for run in runs), "first_losses": runs[0]["losses"][:3]}
    for trainer in results:
        results[trainer]["sftkit is faster"] = round(results[trainer]["ms"] / results["sftkit"]["ms"], 2)
    return results


def show_shape(name: str, results: dict[str, Any]) -> None:
    rows = [
        [
            trainer,
            f"{row['ms']:.0f}",
            f"{row['sftkit is faster']:.2f}",
            f"{row['gb']:.2f}",
            f"{row['first_losses'][0]:.4f}",
        ]
        for trainer, row in results.items()
    ]
    made_with = versions("sftkit-train", "torch", "transformers", "trl")
    title = f"A step of the shape {name!r}, median ({made_with})"
    report(results, title, ("trainer", "ms", "times sftkit", "peak GB", "first loss"), rows, False)
    for trainer, target in TARGETS.items():
        ratio = results[trainer]["sftkit is faster"]
        print(f"target of {target} times {trainer}: {'met' if ratio >= target else 'missed'} ({ratio})")
    if name == "completions":
        memory = results["sftkit"]["gb"]
        print(f"target of {MOST_MEMORY} GB at most: {'met' if memory <= MOST_MEMORY else 'missed'} ({memory:.2f})")


def measure_tiny(flags: argparse.Namespace) -> dict[str, Any]:
    """The steps of the demo, in turns."""
    steps, rounds = (80, 1) if flags.quick else (220, 3)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in TINY}
    for _ in range(rounds):
        for name in TINY:
            found[name].append(measure("--child", name, "--tiny", "--steps", str(steps)))
    return {name: {part: median([run[part] for run in runs]) for part in runs[0]} for name, runs in found.items()}


def show_tiny(results: dict[str, Any]) -> None:
    columns = ("ms", *_tiny.PARTS, "other")
    rows = [
        [name, *(f"{row[part]:.2f}" for part in columns), f"{row['other'] / row['ms']:.1%}"]
        for name, row in results.items()
    ]
    title = f"A step of the demo ({versions('sftkit-train', 'torch', 'transformers')})"
    report(results, title, ("trainer", *columns, "share"), rows, False)
    share = results["sftkit"]["other"] / results["sftkit"]["ms"]
    print(f"target of {MOST_OTHER:.0%} outside: {'met' if share <= MOST_OTHER else 'missed'} ({share:.1%})")


def main() -> None:
    parser = add_flags(argparse.ArgumentParser(description=__doc__.splitlines()[0]))
    parser.add_argument("--shape", action="append", choices=[*SHAPES], help="default: all; with --quick, completions")
    parser.add_argument("--tiny", action="store_true", help="the demo's steps: what they spend outside the model")
    parser.add_argument("--plugin", action="append", default=[], help="measure sftkit with these plugins too")
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU time, for a busy machine")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child and flags.tiny:
        _tiny.child(flags.child, flags.steps)
        return
    if flags.child:
        _steps.child(flags.child, flags.rows, SHAPES[flags.shape[0]], flags.steps, flags.plugin)
        return
    if flags.cpu_time:
        os.environ[CPU_TIME] = "1"
    results: dict[str, Any] = {}
    for name in [] if flags.tiny else flags.shape or (["completions"] if flags.quick else [*SHAPES]):
        results[name] = measure_shape(name, flags)
        if not flags.json:
            show_shape(name, results[name])
    if flags.tiny or not (flags.quick or flags.shape):
        results["tiny"] = measure_tiny(flags)
        if not flags.json:
            show_tiny(results["tiny"])
    if flags.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
