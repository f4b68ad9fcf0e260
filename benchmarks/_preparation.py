"""How long data takes to prepare with one worker and with two, in turns: with one tokenizer thread each, and unpinned.

The rows of a file are repeated until one worker takes 20 seconds; the cache is a new one for each measurement. Times
are those of `prepare_to`, without the start of Python and its imports; processor time is that of all its processes
together.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

CHILD = """
import json, os, sys, time
from sftkit.api import Pipeline, prepare_to
train, tokenizer, to, workers = sys.argv[1:]
pipeline = Pipeline(model="demo", tokenizer=tokenizer, data={"train": train})
pipeline.stages().load_tokenizer()
import datasets, sftkit.data.jobs, sftkit.data.prepared
before, start = sum(os.times()[:4]), time.perf_counter()
manifest = prepare_to(pipeline, to, int(workers))
elapsed, used = time.perf_counter() - start, sum(os.times()[:4]) - before
print(json.dumps([elapsed, used, manifest["splits"]["train"]["summary"]["tokens"]]))
"""
TIMES = 55  # with the 999 rows of LLaMA-Factory's alpaca_en_demo.json, 20 s on one core
PINNED = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def repeated(data: Path, times: int, directory: Path) -> Path:
    """A file of JSON lines with the rows of a file many times."""
    lines = [json.dumps(row) + "\n" for row in json.loads(data.read_text(encoding="utf-8"))]
    path = directory / "train.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for _ in range(times):
            file.writelines(lines)
    return path


class Measured(NamedTuple):
    """One preparation: elapsed and processor time in seconds, and the tokens that it made."""

    wall: float
    used: float
    tokens: int


def measure(train: Path, tokenizer: Path, workers: int, pinned: bool) -> Measured:
    """Prepare a file in a new process, with a new cache."""
    with tempfile.TemporaryDirectory() as scratch:
        variables = {name: value for name, value in os.environ.items() if name not in PINNED}
        environment = {**variables, **(PINNED if pinned else {}), "SFTKIT_CACHE": f"{scratch}/cache"}
        command = [sys.executable, "-c", CHILD, str(train), str(tokenizer), f"{scratch}/to", str(workers)]
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        return Measured(*json.loads(done.stdout.splitlines()[-1]))


def prepare_workers(data: Path, tokenizer: Path, times: int = TIMES, rounds: int = 5) -> dict[str, Any]:
    """Compare one worker with two, with one tokenizer thread each and unpinned.

    Args:
        data: a JSON file with an array of rows.
        tokenizer: a tokenizer's directory.
        times: how often the rows are repeated.
        rounds: how often each is measured.

    Returns:
        For each way, the median times and the median of the ratios; and ``tokens per second of one core``, by the
        processor time of one worker with one thread.
    """
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        train = repeated(data, times, Path(directory))
        for name, pinned in (("one tokenizer thread", True), ("unpinned", False)):
            measured = [[measure(train, tokenizer, workers, pinned) for workers in (1, 2)] for _ in range(rounds)]
            one, two = ([pair[at] for pair in measured] for at in range(2))
            found[name] = {
                "one worker, s": statistics.median(each.wall for each in one),
                "two workers, s": statistics.median(each.wall for each in two),
                "one worker, processor s": statistics.median(each.used for each in one),
                "two workers, processor s": statistics.median(each.used for each in two),
                "ratio": statistics.median(b.wall / a.wall for a, b in zip(one, two, strict=True)),
                "rounds": [[round(a.wall, 2), round(b.wall, 2)] for a, b in zip(one, two, strict=True)],
            }
            if pinned:
                found["tokens per second of one core"] = round(statistics.median(a.tokens / a.used for a in one))
    return found
