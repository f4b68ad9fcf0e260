"""Put the GPU figures of benchmarks/results into README.md; with --check, fail where they differ.

    python scripts/gpu_figures.py [--check]

Figures come from these files alone, the newest of each card, with card and versions. Without one the page says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _pages

ROOT = Path(__file__).resolve().parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "benchmarks" / "results"
START, END = "<!-- gpu figures, by scripts/gpu_figures.py -->", "<!-- end of gpu figures -->"
NONE = "Nothing was measured on a GPU yet; `make gpu` does it ([benchmarks](benchmarks/README.md))."
PACKAGES = ("sftkit", "trl", "torch", "transformers")


def block(folder: Path) -> str:
    """What README.md says of GPUs: a paragraph for each card, from its newest results."""
    newest: dict[str, tuple[str, Path, dict[str, Any]]] = {}
    for path in sorted(folder.glob("gpu-*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        when = data["runs"][-1]["when"]
        if data["card"] != "toy-cpu" and when >= newest.get(data["card"], ("",))[0]:
            newest[data["card"]] = when, path, data
    texts = [paragraph(data, path.with_suffix(".md").name) for _, path, data in newest.values()]
    return "\n\n".join(texts or [NONE])


def paragraph(data: dict[str, Any], page: str) -> str:
    """A table of one card: in each row the fastest setting of sftkit, TRL's default and TRL's fastest setting."""
    run = data["runs"][-1]
    packages = run["environment"]["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in PACKAGES if name in packages)
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for name, entry in data["step"].items():
        if entry["status"] == "done":
            group, _, setting = name.partition(": ")
            groups.setdefault(group, {})[setting] = entry
    trl = (entry for found in groups.values() for name, entry in found.items() if name.startswith("trl"))
    attention = " and ".join(sorted({entry["attention"] for entry in trl}))
    used = f"; TRL's attention is `{attention}`, for want of FlashAttention" if attention == "sdpa" else ""
    lines = [
        f"Tokens per second on one {data['card']} ({versions}; {run['when'][:10]}{used}; "
        f"[all figures](benchmarks/results/{page})):",
        "",
        "| model, training, rows | sftkit | MFU | TRL's default | TRL's fastest of those measured |",
        "|---|---|---|---|---|",
    ]
    for group, found in groups.items():
        cells = [_fastest(found, lambda setting: setting.startswith("sftkit"), named=True)]
        best = max((entry for name, entry in found.items() if name.startswith("sftkit")), key=_rate, default=None)
        cells.append("" if best is None else f"{best['mfu']:.1%}")
        cells.append(_fastest(found, lambda setting: setting == "trl"))
        cells.append(_fastest(found, lambda setting: setting.startswith("trl"), named=True))
        lines.append(f"| {group.replace(' ', ', ')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _rate(entry: dict[str, Any]) -> float:
    return float(entry["tokens_per_second"])


def _fastest(found: dict[str, dict[str, Any]], belongs: Callable[[str], bool], named: bool = False) -> str:
    some = {name: entry for name, entry in found.items() if belongs(name)}
    if not some:
        return "not measured"
    best = max(some, key=lambda name: _rate(some[name]))
    return f"{_rate(some[best]):,.0f}" + (f" (`{best}`)" if named else "")


def filled(text: str, folder: Path) -> str:
    """A page with the figures between its two marks."""
    return _pages.between(README, text, START, END, block(folder))


def pages() -> dict[Path, str]:
    """The page as it should be."""
    return {README: filled(README.read_text(encoding="utf-8"), RESULTS)}


if __name__ == "__main__":
    _pages.write(__doc__, "gpu_figures.py", pages)
