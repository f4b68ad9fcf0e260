"""What more processes and more data cost: a step, a checkpoint and a resume, preparation, the order of the rows.

    python benchmarks/scaling.py [--quick] [--json] [--part NAME]

`prepare`: `sftkit prepare` with one worker and two, in turns, on real data. `stream`: the share of one file that each
of 8 processes reads. `sampler`: private memory of the order of the rows.
`step`: the same rows in one process and shared by two, with each way of sharing the model; each process has one thread.
`save`: by size of the model, the time of a save and of the way from the start of a resume to its first step, whole
(DDP) and sharded (plugin fsdp). `docs/scaling.md` extrapolates from these figures.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from _data import SHARED
from _report import add_flags, median, report, versions

ROWS = 512  # of the data set
SIZES = {  # hidden, intermediate, layers
    "step": {False: (512, 1536, 6), True: (256, 768, 4)},
    "save": {
        False: ((512, 1536, 4), (1024, 3072, 8), (1536, 4608, 12)),
        True: ((256, 768, 2), (512, 1536, 4)),
    },
}
ENGINES = {
    "ddp": (),
    "fsdp": ("-p", "fsdp"),
    "ZeRO-3": ("-p", "deepspeed:stage=3"),
    "tp": ("-p", "tensor_parallel:size=2"),
}


def make_model(directory: Path, hidden: int, intermediate: int, layers: int) -> int:
    """Write a model and its tokenizer; returns the number of its weights."""
    from sftkit.testing import tiny_model, tiny_tokenizer

    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": hidden // 8}
    sizes = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers}
    model = tiny_model(**sizes, **heads)
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return sum(weight.numel() for weight in model.parameters())


def write_rows(path: Path) -> None:
    rows = [{"prompt": f"What is {n}?", "completion": f" {n} is {'one more ' * 24}"} for n in range(ROWS)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def run(place: Path, processes: int, *options: str) -> tuple[float, list[dict[str, Any]]]:
    """The seconds of `sftkit run` from start to end, and its log."""
    program = [sys.executable, "-m", "sftkit", "run", *options, "train.use_cpu=true", "-q"]
    if processes > 1:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        program = [sys.executable, *torchrun, *program[1:]]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "SFTKIT_CACHE": str(place / "cache")}
    began = time.perf_counter()
    done = subprocess.run(program, cwd=place, env=variables, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"error: {' '.join(program)} failed:\n{done.stderr[-3000:]}")
    output = Path(place, options[options.index("-o") + 1])
    return seconds, [json.loads(line) for line in (output / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def between(log: Sequence[dict[str, Any]], skipped: int = 2) -> list[float]:
    """The seconds between the entries of steps that follow each other."""
    times = [entry["time"] for entry in log if "loss" in entry]
    return [after - before for before, after in zip(times[skipped:], times[skipped + 1 :], strict=False)]


def measure_step(place: Path, quick: bool) -> tuple[dict[str, Any], list[list[str]]]:
    """Seconds of a step of 16 rows, by number of processes and engine."""
    make_model(place / "model", *SIZES["step"][quick])
    number, batch = (8, 16) if quick else (16, 16)
    shared = ("-m", "model", "-d", "rows.jsonl", f"train.max_steps={number}", "train.logging_steps=1")
    shared += ("train.save_strategy=no", "train.eval_strategy=no", "data.max_length=256")
    result, table = {}, []
    for name, (processes, options) in {"one process": (1, ()), **{k: (2, v) for k, v in ENGINES.items()}}.items():
        each = batch // (processes if name != "tp" else 1)
        output = name.replace(" ", "-")
        taken = []
        for turn in range(1 if quick else 3):
            rows = f"train.per_device_train_batch_size={each}"
            _, log = run(place, processes, *shared, *options, rows, "-o", f"{output}-{turn}")
            taken += between(log)
        result[name] = median(taken)
    for name, seconds in result.items():
        table.append(["step", name, f"{seconds * 1e3:,.0f} ms", f"{result['one process'] / seconds:.2f}x"])
    return result, table


def measure_save(place: Path, quick: bool) -> tuple[dict[str, Any], list[list[str]]]:
    """Seconds and gigabytes of a checkpoint, and seconds from the start of a resume to its first step."""
    from sftkit.checkpoints.space import size_of

    result, table = {}, []
    for size in SIZES["save"][quick]:
        shutil.rmtree(place / "model", ignore_errors=True)
        weights = make_model(place / "model", *size)
        for name in ("ddp", "fsdp"):
            shared = ("-m", "model", "-d", "rows.jsonl", "train.logging_steps=1", *ENGINES[name], "-o", "saved")
            shared += ("train.save_strategy=steps", "train.save_steps=2", "train.per_device_train_batch_size=1")
            shared += ("train.eval_strategy=no", "run.save_in_background=false")
            _, log = run(place, 2, *shared, "train.max_steps=6")
            saves = [entry["save_seconds"] for entry in log if "save_seconds" in entry]
            gigabytes = size_of(place / "saved" / "checkpoint-6") / 1e9
            began = time.time()
            _, log = run(place, 2, *shared, "train.max_steps=8", "--resume")
            resumed = next(entry["time"] for entry in log if entry.get("step") == 7 and "loss" in entry) - began
            shutil.rmtree(place / "saved")
            key = f"{weights / 1e6:.0f}M weights, {name}"
            result[key] = {"save s": median(saves), "GB": round(gigabytes, 3), "first step s": round(resumed, 1)}
            rate = gigabytes / statistics.median(saves)
            table.append(["save", key, f"{median(saves):.2f} s for {gigabytes:.2f} GB", f"{rate:.2f} GB/s"])
            table.append(["resume", key, f"{resumed:.1f} s to the first step", ""])
    return result, table


def measure_prepare(place: Path, quick: bool) -> tuple[dict[str, Any], list[list[str]]]:
    """Seconds of one worker and of two."""
    from _preparation import prepare_workers

    times, rounds = (10, 1) if quick else (55, 5)
    result = prepare_workers(SHARED / "alpaca_en_demo.json", SHARED / "llama2_tokenizer", times, rounds)
    table = [
        [
            "prepare",
            f"{name}: one worker, two",
            f"{found['one worker, s']:.1f} s, {found['two workers, s']:.1f} s",
            f"{found['ratio']:.2f}",
        ]
        for name, found in result.items()
        if isinstance(found, dict)
    ]
    return result, table


def measure_stream(place: Path, quick: bool) -> tuple[dict[str, Any], list[list[str]]]:
    """The share of a file that each of 8 processes reads."""
    from _streams import stream_parts

    result = stream_parts(50_000 if quick else 400_000, 8)
    table = [
        ["stream", f"{name}, 8 processes", f"{max(found['share read']):.1%} of the file", ""]
        for name, found in result.items()
    ]
    return result, table


def measure_sampler(place: Path, quick: bool) -> tuple[dict[str, Any], list[list[str]]]:
    """Private memory of the order of the rows in one of 8 processes."""
    from _sampler import measure

    result: dict[str, Any] = {}
    table = []
    for order in ("random", "group_by_length", "torch"):
        for rows in (1_000_000, 10_000_000) if quick else (10_000_000, 100_000_000):
            found = measure(order, rows)
            key = f"{order}, {rows / 1e6:.0f}M rows"
            result[key] = {"bytes": found["bytes"], "bytes per row": round(found["per_row"], 4)}
            table.append(["sampler", key, f"{found['bytes'] / 1e6:,.1f} MB", f"{found['per_row']:.3f} bytes a row"])
    return result, table


PARTS: dict[str, Callable[[Path, bool], tuple[dict[str, Any], list[list[str]]]]] = {
    "prepare": measure_prepare,
    "stream": measure_stream,
    "sampler": measure_sampler,
    "step": measure_step,
    "save": measure_save,
}


def main() -> None:
    parser = add_flags(argparse.ArgumentParser(description=__doc__.splitlines()[0]))
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; repeatable")
    flags = parser.parse_args()
    result, rows = {}, []
    for name in flags.part or PARTS:
        with tempfile.TemporaryDirectory() as directory:
            write_rows(Path(directory, "rows.jsonl"))
            result[name], lines = PARTS[name](Path(directory), flags.quick)
            rows += lines
    title = f"Scaling on {os.cpu_count()} cores ({versions('sftkit-train', 'torch', 'transformers')})"
    report(result, title, ("part", "case", "figure", ""), rows, flags.json)


if __name__ == "__main__":
    main()
