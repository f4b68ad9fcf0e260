"""What plugins cost and gain, from pairs of runs in benchmarks/results that differ by the plugin alone; ratios only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SFTKIT = "sftkit"
#: The engines of the part "step" of benchmarks/scaling.py, by plugin.
ENGINES = {"fsdp": "fsdp", "deepspeed": "ZeRO-3", "tensor_parallel": "tp"}


def measured(name: str, folder: Path) -> str:
    """A paragraph or a table on one plugin, or that nothing was measured."""
    if name in ENGINES:
        return _engine(name, folder)
    results = max(folder.glob("gpu-*.json"))
    data = json.loads(results.read_text(encoding="utf-8"))
    rows = list(_pairs(name, data["step"]))
    if not rows:
        return "Not measured on a GPU."
    packages = data["runs"][-1]["environment"]["packages"]
    versions = ", ".join(f"{each} {packages[each]}" for each in ("torch", "transformers") if each in packages)
    page = f"../../benchmarks/results/{results.with_suffix('.md').name}"
    head = [
        "| model, training, rows | with the plugin | compared with | speed | peak memory |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([f"On one {data['card']} ({versions}; `make gpu`; [all figures]({page})):", "", *head, *rows])


def _pairs(name: str, step: dict[str, Any]) -> Iterator[str]:
    """A row for each setting of sftkit that was measured with and without this plugin."""
    done = {setting: entry for setting, entry in step.items() if entry["status"] == "done"}
    for setting, entry in done.items():
        group, _, plugins = setting.partition(": ")
        parts = plugins.split(" + ")
        without = " + ".join(part for part in parts if part != name)
        other = done.get(f"{group}: {without}")
        if parts[0] != SFTKIT or name not in parts or other is None:
            continue
        speed = entry["tokens_per_second"] / other["tokens_per_second"]
        memory = entry["peak_gib"] / other["peak_gib"]
        yield f"| {group} | `{plugins}` | `{without}` | {speed:.2f} × | {memory:.2f} × |"


def _engine(name: str, folder: Path) -> str:
    step = json.loads(max(folder.glob("scaling-*.json")).read_text(encoding="utf-8"))["step"]
    ratio = step[ENGINES[name]] / step["ddp"]
    return (
        f"On the CPU, a step of two processes took {ratio:.2f} times as long as with plain data parallelism "
        f"(`{ENGINES[name]}`, a tiny model; `python benchmarks/scaling.py --part step`)."
    )
