"""What the plugins that filter rows cost: the time and memory of a row, beside the preparation of the same rows.

    python benchmarks/filters.py [--quick] [--json]

The rows are Code Alpaca, repeated with a number at the start so that all differ, which is the most that a filter has to
remember. Each filter gets them alone, in a process of its own, and the memory is what the process has grown by.
Preparation is that of 20,000 of the rows in one process with the Llama 2 tokenizer, without a filter and with each.
`--quick` uses a tenth of the rows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import psutil
from _data import SHARED, code_alpaca
from _report import parse_flags, report, versions

AT_ONCE = 2000
CASES = {
    "dedup": ("dedup", 1_000_000),
    "near": ("dedup:near=0.8", 100_000),
    "decontaminate": ("decontaminate", 100_000),
}
PREPARED = 20_000
HELD_OUT = 200  # rows of the evaluation set


def rows(number: int) -> Iterator[dict[str, Any]]:
    pairs = code_alpaca()
    for at in range(number):
        question, answer = pairs[at % len(pairs)]
        yield {"prompt": f"{at} {question}", "completion": answer}


def alone(plugin: str, number: str) -> None:
    """Run in a child process: give rows to a filter, and print seconds and bytes a row."""
    from sftkit.config.source import ConfigSource
    from sftkit.plugin.select import choices_from, select
    from sftkit.testing import tiny_config

    found, _ = select(choices_from(ConfigSource({"plugins": [plugin]})))
    ((_, made),) = found.hook.filter_rows(columns=["prompt", "completion"], config=tiny_config())
    if made.reads_held_out:
        made.see_held_out(
            "eval", {"prompt": [f"held out {at}: {pair[0]}" for at, pair in enumerate(code_alpaca()[:HELD_OUT])]}
        )
    made({"prompt": ["first"], "completion": ["row"]})  # imports what it needs
    left, seconds, before = rows(int(number)), 0.0, psutil.Process().memory_info().rss
    while some := list(islice(left, AT_ONCE)):
        columns = {name: [row[name] for row in some] for name in some[0]}
        started = time.perf_counter()
        made(columns)
        seconds += time.perf_counter() - started
    grown = psutil.Process().memory_info().rss - before
    print(json.dumps({"µs a row": seconds / int(number) * 1e6, "bytes a row": grown / int(number)}))


def prepare(plugin: str, path: str) -> None:
    """Run in a child process: prepare a file, and print the seconds."""
    from transformers import AutoTokenizer

    from sftkit import Pipeline
    from sftkit.testing import tiny_model

    tokenizer, model = AutoTokenizer.from_pretrained(SHARED / "llama2_tokenizer"), tiny_model()
    held_out = [
        {"prompt": f"held out {at}: {pair[0]}", "completion": pair[1]}
        for at, pair in enumerate(code_alpaca()[:HELD_OUT])
    ]
    data = {"train": path, "max_length": 512, "cache": False}
    run = Pipeline(
        model=model, tokenizer=tokenizer, config={"data": data}, eval=held_out, plugins=[plugin] if plugin else []
    )
    started = time.perf_counter()
    run.prepare()
    print(json.dumps({"s": time.perf_counter() - started}))


def child(task: str, *arguments: object) -> dict[str, float]:
    command = [sys.executable, __file__, task, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    flags = parse_flags(__doc__.splitlines()[0])
    share = 10 if flags.quick else 1
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "rows.jsonl")
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(PREPARED // share)), encoding="utf-8")
        plain = child("prepare", "", path)["s"]
        for name, (plugin, number) in CASES.items():
            measured = child("alone", plugin, number // share)
            together = child("prepare", plugin, path)["s"]
            result[name] = {
                "rows": number // share,
                **{what: round(value, 1) for what, value in measured.items()},
                "preparation s": round(together, 2),
                "without it s": round(plain, 2),
            }
    columns = ("filter", *next(iter(result.values())))
    shown = [[name, *(f"{value:,}" for value in found.values())] for name, found in result.items()]
    report(result, f"Filters of rows ({versions('sftkit-train', 'datasketch')})", columns, shown, flags.json)


if __name__ == "__main__":
    if sys.argv[1:2] in (["alone"], ["prepare"]):
        {"alone": alone, "prepare": prepare}[sys.argv[1]](*sys.argv[2:])
    else:
        main()
