"""Speed and memory of preparation from 100,000 to 1,000,000 rows, and the time until a second run is ready.

    python benchmarks/data_scale.py [--quick] [--json]

The data is Code Alpaca, repeated with a number at the start so that all rows differ, as JSON lines with the Llama 2
tokenizer and 512 tokens. Each size is prepared in its own process with an empty cache, and then again with the same
cache. The rate includes reading the file, and the memory is the peak of the process. `--quick` uses 10,000 and 40,000
rows.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

from _data import SHARED, code_alpaca
from _report import parse_flags, report, versions


def write_rows(path: Path, number: int) -> None:
    pairs = code_alpaca()
    with path.open("w", encoding="utf-8") as file:
        for at in range(number):
            question, answer = pairs[at % len(pairs)]
            file.write(json.dumps({"prompt": f"{at} {question}", "completion": answer}) + "\n")


def prepare(path: str, plugin: str) -> None:
    """Run in a child process: prepare twice, and print seconds and peak memory."""
    from transformers import AutoTokenizer

    from sftkit import Pipeline
    from sftkit.testing import tiny_model

    tokenizer = AutoTokenizer.from_pretrained(SHARED / "llama2_tokenizer")
    model, measured = tiny_model(), {}
    for name in ("first", "second"):
        started = time.perf_counter()
        data = {"train": path, "max_length": 512}
        run = Pipeline(model=model, tokenizer=tokenizer, data=data, plugins=[plugin] if plugin else [])
        run.prepare()
        measured[name] = time.perf_counter() - started
    measured["MB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps(measured))


def child(path: Path, plugin: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=path.parent) as cache:
        own = {"SFTKIT_CACHE": cache, "HF_HOME": f"{cache}/hf"}
        command = [sys.executable, __file__, "--child", str(path), plugin]
        done = subprocess.run(command, env={**os.environ, **own}, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    flags = parse_flags(__doc__.splitlines()[0])
    sizes = (10_000, 40_000) if flags.quick else (100_000, 1_000_000)
    result, rows = {}, []
    with tempfile.TemporaryDirectory() as directory:
        for plugin in ("", "packing"):
            measured = {}
            for number in sizes:
                path = Path(directory, f"{number}.jsonl")
                if not path.exists():
                    write_rows(path, number)
                measured[number] = child(path, plugin)
            low, high = (measured[number] for number in sizes)
            rates = [number / measured[number]["first"] for number in sizes]
            name = plugin or "plain"
            result[name] = {
                **{f"rows/s at {number:,}": round(rate) for number, rate in zip(sizes, rates, strict=True)},
                "rates apart": round(max(rates) / min(rates) - 1, 3),
                "MB apart": round(abs(high["MB"] - low["MB"])),
                "peak MB": round(high["MB"]),
                "second run s": round(high["second"], 3),
            }
            figures = ", ".join(f"{key} {value:,}" for key, value in result[name].items())
            met = rates[1] >= rates[0] * 0.85 and result[name]["MB apart"] <= 300 and high["second"] <= 1
            wanted = "rate at most 15 % lower, memory ≤ 300 MB apart, second run ≤ 1 s"
            rows.append([name, figures, wanted, "met" if met else "missed"])
    libraries = versions("sftkit-train", "tokenizers", "datasets")
    report(result, f"Data preparation by size ({libraries})", ("case", "figures", "target", ""), rows, flags.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        prepare(*sys.argv[2:])
    else:
        main()
