"""How long data takes to prepare with one worker and with two, in turns: with one tokenizer thread each, and unpinned.

    python benchmarks/prepare_workers.py DATA TOKENIZER --times 80 --rounds 3

DATA is a JSON file with an array of rows, which are repeated; the cache is a new one for each measurement. The time is
that of `prepare_to`, without the start of Python and its imports. Processor time is that of all processes together,
with the start. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CHILD = """
import sys, time
from sftkit.api import Pipeline, prepare_to
train, tokenizer, to, workers = sys.argv[1:]
pipeline = Pipeline(model="demo", tokenizer=tokenizer, data={"train": train})
pipeline.stages().load_tokenizer()
import datasets, sftkit.data.jobs, sftkit.data.prepared
start = time.perf_counter()
prepare_to(pipeline, to, int(workers))
print(time.perf_counter() - start)
"""
PINNED = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def repeated(data: Path, times: int, directory: Path) -> Path:
    """A file of JSON lines with the rows of a file many times."""
    lines = [json.dumps(row) + "\n" for row in json.loads(data.read_text(encoding="utf-8"))]
    path = directory / "train.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for _ in range(times):
            file.writelines(lines)
    return path


def seconds(train: Path, tokenizer: Path, workers: int, pinned: bool) -> tuple[float, float]:
    """Elapsed and processor time of one preparation."""
    with tempfile.TemporaryDirectory() as scratch:
        variables = {name: value for name, value in os.environ.items() if name not in PINNED}
        environment = {**variables, **(PINNED if pinned else {}), "SFTKIT_CACHE": f"{scratch}/cache"}
        command = [sys.executable, "-c", CHILD, str(train), str(tokenizer), f"{scratch}/to", str(workers)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return float(done.stdout.split()[-1]), used


def prepare_workers(data: Path, tokenizer: Path, times: int, rounds: int) -> dict[str, Any]:
    """Median times with one and two workers, and their ratio; pinned and unpinned."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        train = repeated(data, times, Path(directory))
        for name, pinned in (("one tokenizer thread", True), ("unpinned", False)):
            measured = [[seconds(train, tokenizer, workers, pinned) for workers in (1, 2)] for _ in range(rounds)]
            one, two = ([pair[at] for pair in measured] for at in range(2))
            found[name] = {
                "one worker, s": statistics.median(wall for wall, _ in one),
                "two workers, s": statistics.median(wall for wall, _ in two),
                "one worker, processor s": statistics.median(used for _, used in one),
                "two workers, processor s": statistics.median(used for _, used in two),
                "ratio": statistics.median(b[0] / a[0] for a, b in zip(one, two, strict=True)),
                "rounds": [[round(a[0], 2), round(b[0], 2)] for a, b in zip(one, two, strict=True)],
            }
    return found


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--times", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(json.dumps(prepare_workers(options.data, options.tokenizer, options.times, options.rounds), indent=1))


if __name__ == "__main__":
    main()
