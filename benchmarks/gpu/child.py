"""What a child process does: one measurement, whose figures or traceback it writes to a file."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
import traceback
from multiprocessing import parent_process
from pathlib import Path
from statistics import median
from typing import Any

from gpu.cases import Spec

TRACE_LINES = 30


def main(job: str, values: dict[str, Any], directory: str) -> None:
    """Do one job of `JOBS`, and write ``result.json``; what is printed goes to ``log.txt``.

    Args:
        job: its name.
        values: its arguments.
        directory: for both files, and for anything the job writes.
    """
    os.setsid()  # with all that it starts, one group to be ended
    threading.Thread(target=_end_with_parent, daemon=True).start()
    path = Path(directory)
    log = os.open(path / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.chdir(path)
    started = time.perf_counter()
    try:
        found = {"status": "done", **JOBS[job](**values)}
    except BaseException as error:  # whatever ends a measurement is its result
        found = failure(error)
    found["seconds"] = round(time.perf_counter() - started, 1)
    (path / "part.json").write_text(json.dumps(found), encoding="utf-8")
    (path / "part.json").rename(path / "result.json")
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)  # without waiting for threads that a failed measurement has left


def failure(error: BaseException) -> dict[str, Any]:
    """A failed measurement: the reason in a line, and the last lines of the traceback."""
    lines = "".join(traceback.format_exception(type(error), error, error.__traceback__)).splitlines()
    text = " ".join(str(error).split())
    memory = type(error).__name__ == "OutOfMemoryError" or "out of memory" in text.lower()
    reason = f"out of memory: {text}" if memory else f"{type(error).__name__}: {text}"
    return {"status": "failed", "reason": reason[:300], "trace": lines[-TRACE_LINES:]}


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os.killpg(0, signal.SIGKILL)


def probe(toy: bool) -> dict[str, Any]:
    """The device, after a product on it: a fork of a process that has started CUDA fails here."""
    import torch

    preload = sys.modules.get("gpu.preload")
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "preload_s": round(preload.SECONDS, 1) if preload else None,
        "preload_problems": preload.PROBLEMS if preload else [],
    }
    if toy:
        return {**found, "device": "cpu", "card": "toy-cpu", "gib": 0.0}
    one = torch.ones(64, 64, device="cuda", dtype=torch.bfloat16)
    assert float((one @ one).sum()) == 64**3
    properties = torch.cuda.get_device_properties(0)
    gib = round(properties.total_memory / 2**30, 1)
    return {**found, "device": "cuda", "card": torch.cuda.get_device_name(0), "gib": gib}


def step(spec: Spec) -> dict[str, Any]:
    """The figures of one setting."""
    if spec.kind == "unsloth":
        import unsloth  # noqa: F401 (changes transformers, which the watch imports)
    from gpu.runs import KINDS
    from gpu.watch import EnoughError, Watch

    notes = _notes()
    profiler = None
    if spec.profiled:
        from gpu import profile

        profiler = profile.profiler(spec.device)
    watch = Watch(spec.warmup, spec.steps, spec.device, profiler, spec.profiled)
    with contextlib.suppress(EnoughError):
        KINDS[spec.kind](spec, watch)
    found = {**figures(spec, watch), "notes": notes}
    if spec.profiled:
        path, seconds = Path(spec.directory, "trace.json"), median(watch.seconds)
        found["profile"] = profile.summary(profiler, path, spec.profiled, seconds, spec.device)
        found["profile"]["profiled_step_ms"] = round(median(watch.profiled_seconds) * 1e3, 3)
    return found


def _notes() -> list[str]:
    """What sftkit logs from here on: the kernels it chose, the memory it estimated."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage()[:300])  # type: ignore[method-assign]
    logger = logging.getLogger("sftkit")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    return lines


def figures(spec: Spec, watch: Any) -> dict[str, Any]:
    """What a watch has seen; rates are medians over the steps, so that a late compilation does not count."""
    from gpu.flops import adapter_widths, count, peak_flops, step_flops
    from gpu.runs import LORA

    if len(watch.seconds) != spec.steps or len(watch.rows) < spec.batch * watch.total:
        raise RuntimeError(f"{len(watch.seconds)} steps on {len(watch.rows)} rows, not {spec.steps} as planned")
    adapters = LORA["r"] * adapter_widths(spec.shape) if spec.train == "lora" else 0
    counts, flops = [], []
    for number in range(spec.warmup, spec.warmup + spec.steps):
        rows = [count(watch.rows[at]) for at in range(number * spec.batch, (number + 1) * spec.batch)]
        counts.append([sum(values) for values in zip(*rows, strict=True)])
        flops.append(step_flops(spec.shape, spec.train, *counts[-1], adapters))
    peak, source = peak_flops(spec.device)

    def rate(amounts: list[Any]) -> float:
        return median(amount / seconds for amount, seconds in zip(amounts, watch.seconds, strict=True))

    return {
        "tokens_per_second": round(rate([tokens for tokens, _, _ in counts]), 1),
        "trained_tokens_per_second": round(rate([trained for _, trained, _ in counts]), 1),
        "step_ms": round(median(watch.seconds) * 1e3, 2),
        "step_seconds": [round(seconds, 5) for seconds in watch.seconds],
        "peak_gib": round(watch.peak_gib, 2),
        "mfu": round(rate(flops) / peak, 4),
        "tflops": round(rate(flops) / 1e12, 3),
        "peak_tflops": round(peak / 1e12, 2),
        "peak_source": source,
        "tokens": sum(tokens for tokens, _, _ in counts),
        "trained_tokens": sum(trained for _, trained, _ in counts),
        "rows_of_a_batch": spec.batch,
        "attention": watch.attention,
        "losses": [round(loss, 6) for loss in watch.losses],
    }


def head(**values: Any) -> dict[str, Any]:
    """The loss head alone."""
    from gpu.head import measure

    return measure(**values)


JOBS = {"probe": probe, "step": step, "head": head}
