"""From the start of a resume to its first step: at step 10 and at step 100,000, with prepared and with streamed data.

    python benchmarks/resuming.py [--quick] [--json]

A tiny model trains ten steps on made data of many short rows and is stopped. Its checkpoint is then given a later step
and, for a stream, the position there, which the stream itself reports after it has given as many rows. Each resume is
timed in this process, where everything is imported, up to the end of its first step; prepared data are in the cache.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from itertools import islice
from pathlib import Path
from typing import Any

from _report import median, parse_flags, report, versions

BATCH = 4
FIRST = 10
LATE = {False: 100_000, True: 10_000}
KINDS: dict[str, dict[str, Any]] = {
    "prepared": {"streaming": False},
    "stream": {"streaming": True},
    "stream without a shuffle buffer": {"streaming": True, "shuffle_buffer": 0},
    "stream of Parquet": {"streaming": True},
}


class Stopped(Exception):  # noqa: N818 (it is no error)
    """Ends a run as a crash would."""


def pipeline(place: Path, output: Path, kind: str, steps: int, resume: bool, stop: Any = None) -> Any:
    """A run that trains for more than ``steps`` steps."""
    from sftkit import Pipeline
    from sftkit.testing import tiny_tokenizer

    name = "rows.parquet" if "Parquet" in kind else "rows.jsonl"
    data = {"train": str(place / name), "max_length": 64, **KINDS[kind]}
    train = {"max_steps": steps + 1000, "save_strategy": "steps", "save_steps": FIRST, "logging_steps": 100}
    train |= {"output_dir": str(output), "use_cpu": True, "per_device_train_batch_size": BATCH}
    config = {"model": {"name": str(place / "model")}, "data": data, "train": train}
    return Pipeline(config=config, tokenizer=tiny_tokenizer(), resume=resume, callbacks=[stop] if stop else [])


def seconds_to_step(place: Path, output: Path, kind: str, steps: int, resume: bool, last: int) -> float:
    """The time from the start of a run to the end of a step, where the run ends."""
    from transformers import TrainerCallback

    found = []

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == last:
                found.append(time.perf_counter())
                raise Stopped

    began = time.perf_counter()
    try:
        pipeline(place, output, kind, steps, resume, Stop()).run()
    except Stopped:
        return found[0] - began
    raise AssertionError("the run was not stopped")


def move(checkpoint: Path, step: int, position: dict[str, Any] | None) -> None:
    """Turn a checkpoint into one of a later step."""
    from sftkit.checkpoints import manifest

    details, _ = manifest.read(checkpoint, FIRST)
    moved = checkpoint.rename(checkpoint.with_name(f"checkpoint-{step}"))
    state = json.loads((moved / "trainer_state.json").read_text(encoding="utf-8"))
    (moved / "trainer_state.json").write_text(json.dumps({**state, "global_step": step}), encoding="utf-8")
    if position is not None:
        (moved / "stream_0.json").write_text(json.dumps(position), encoding="utf-8")
    kept = {name: value for name, value in details.items() if name not in ("format", "files", "digest")}
    manifest.write(moved, {**kept, "step": step})


def measure(place: Path, kind: str, late: int, times: int) -> dict[str, float]:
    """The medians of resumes at the two steps."""
    begun, found = place / kind / "begun", {}
    seconds_to_step(place, begun, kind, late, False, FIRST + 1)
    for step in (FIRST, late):
        position = None
        if KINDS[kind]["streaming"]:
            stream = pipeline(place, begun, kind, late, True).prepare().data.train
            for _ in islice(stream, step * BATCH):
                pass
            position = stream.position(step * BATCH)
        taken = []
        for number in range(times):
            output = Path(shutil.copytree(begun, place / kind / f"{step}-{number}"))
            move(output / f"checkpoint-{FIRST}", step, position)
            taken.append(seconds_to_step(place, output, kind, late, True, step + 1))
            shutil.rmtree(output)
        found[f"step {step}"] = median(taken)
    return found


def write(place: Path, rows: int) -> None:
    """The model and the data: one pass is longer than the run."""
    from datasets import Dataset

    from sftkit.testing import tiny_model

    tiny_model().save_pretrained(place / "model")
    values = [{"prompt": f"What is {n}?", "completion": f" {n} is one more than {n - 1}"} for n in range(rows)]
    (place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in values), encoding="utf-8")
    Dataset.from_list(values).to_parquet(place / "rows.parquet")


def main() -> None:
    flags = parse_flags(__doc__.splitlines()[0])
    late = LATE[flags.quick]
    with tempfile.TemporaryDirectory() as place, redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        os.environ["SFTKIT_CACHE"] = f"{place}/cache"
        write(Path(place), (late + 2000) * BATCH)
        result = {kind: measure(Path(place), kind, late, 1 if flags.quick else 3) for kind in KINDS}
    rows = [[kind, *(f"{seconds:.2f}" for seconds in found.values())] for kind, found in result.items()]
    title = f"Seconds to the first step of a resume ({versions('sftkit-train', 'transformers', 'torch', 'datasets')})"
    report(result, title, ("data", f"at step {FIRST}", f"at step {late:,}"), rows, flags.json)


if __name__ == "__main__":
    main()
