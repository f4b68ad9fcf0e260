"""The first half of `soak.py`: one long run whose memory, open files and threads must not grow."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import yaml

from sftkit.testing import tiny_model, tiny_tokenizer
from sftkit.testing.processes import Command, start_command

GROWTH = 20.0  # MB that the memory may grow
SETTLED = 0.1  # of the steps, after which caches and pools of memory are full
PATIENCE = 600.0  # seconds without a step


def write_run(directory: Path, model: Any, rows: int, sections: dict[str, Any]) -> Path:
    """The model, the data and the configuration of a run in a directory; returns the configuration's path."""
    directory.mkdir(parents=True)
    model.save_pretrained(directory / "model")
    tiny_tokenizer().save_pretrained(directory / "model")
    for name, first in (("rows", 0), ("held-out", rows)):
        made = [
            {"prompt": f"What is {n}?", "completion": f" {n} is {'one more ' * (n % 7)}"}
            for n in range(first, first + rows)
        ]
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    path = directory / "run.yaml"
    data = {"train": str(directory / "rows.jsonl"), "max_length": 128, **sections.pop("data", {})}
    values = {"model": {"name": str(directory / "model")}, "data": data, **sections}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def endure(context: Any, directory: Path, steps: int, streaming: bool) -> dict[str, Any]:
    """Train for many steps with saves, evaluations and packing, and measure what grows.

    Returns:
        The result, with ``problems``: each in words.
    """
    every = max(steps // 100, 1)
    watched = directory / "watched.jsonl"
    train = {
        "max_steps": steps,
        "per_device_train_batch_size": 2,
        "save_strategy": "steps",
        "save_steps": max(steps // 100, 1),
        "eval_strategy": "steps",
        "eval_steps": max(steps // 40, 1),
        "logging_steps": 10,
        "learning_rate": 1e-3,
        "use_cpu": True,
    }
    plugins = {"packing": {}, "_soak_watch:Watch": {"path": str(watched), "every": every}}
    sections = {"train": train, "plugins": plugins, "data": {"eval": str(directory / "held-out.jsonl")}}
    if streaming:
        sections["data"] |= {"streaming": True, "window": 64}
    config = write_run(directory, tiny_model(), 200, sections)
    began = time.monotonic()
    env = {"SFTKIT_CACHE": str(directory / "cache")}
    command = start_command(
        context, ["run", str(config), "-o", "run"], cwd=directory, printed=directory / "printed.txt", env=env
    )
    _follow(command, watched, steps)
    result: dict[str, Any] = {"seconds": round(time.monotonic() - began, 1), "samples": read_lines(watched)}
    result["problems"] = _problems(result, steps, command)
    return result


def _follow(command: Command, watched: Path, steps: int) -> None:
    """Print the progress until the command ends."""
    shown, moved = 0, time.monotonic()
    while command.running and time.monotonic() - moved < PATIENCE:
        time.sleep(0.5)
        if (samples := read_lines(watched)) and samples[-1]["step"] != shown:
            moved, last, before = time.monotonic(), samples[-1], shown
            shown = last["step"]
            if shown * 10 // steps != before * 10 // steps:
                print(
                    f"  step {shown:,}: {last['rss']:.1f} MB, {last['files']} files, {last['threads']} threads",
                    flush=True,
                )
    command.end()


def _problems(result: dict[str, Any], steps: int, command: Command) -> list[str]:
    samples = [item for item in result["samples"] if item["step"] >= steps * SETTLED]
    if command.process.exitcode != 0 or not samples:
        return [f"the run ended with exit code {command.process.exitcode}: {last_line(command.output)}"]
    first, found = samples[0], []
    result["growth"] = round(max(item["rss"] for item in samples) - first["rss"], 1)
    if result["growth"] > GROWTH:
        found.append(
            f"the memory grew by {result['growth']} MB from step {first['step']:,}; {GROWTH:.0f} MB are allowed"
        )
    for name in ("files", "threads"):
        result[name] = sorted({item[name] for item in samples})
        if len(result[name]) > 1:
            found.append(f"the number of {name} was not constant: {result[name]}")
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a JSONL file that is still written."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def last_line(output: str) -> str:
    """The last line that is not empty."""
    return next((line for line in reversed(output.splitlines()) if line.strip()), "")
