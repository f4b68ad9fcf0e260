"""Put the GPU figures of benchmarks/results into README.md; with --check, fail where they differ.

    python scripts/gpu_figures.py [--check]

Figures come from these files alone, the newest of each card, with card and versions. Without one the page says so.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

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
    """The targets of one card, with the values that were measured."""
    run = data["runs"][-1]
    packages = run["environment"]["packages"]
    versions = ", ".join(f"{name} {packages[name]}" for name in PACKAGES if name in packages)
    lines = [f"One {data['card']} ({versions}; {run['when'][:10]}; [all figures](benchmarks/results/{page})):", ""]
    for target in data["targets"]:
        verdict = {None: "not measured", True: "met", False: "missed"}[target["met"]]
        value = "" if target["value"] is None else f"{target['value']:,.4g}, "
        by = f" with `{target['by']}`" if target["by"] else ""
        lines.append(f"- {target['target']}: {value}{verdict}{by}")
    return "\n".join(lines)


def filled(text: str, folder: Path) -> str:
    """A page with the figures between its two marks."""
    pattern = f"(?<={re.escape(START)}\n).*(?=\n{re.escape(END)})"
    if not re.search(pattern, text, re.DOTALL):
        sys.exit(f"error: {README.name} lacks the lines {START!r} and {END!r}")
    return re.sub(pattern, lambda _: block(folder), text, count=1, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 if README.md is out of date")
    check = parser.parse_args().check
    text = README.read_text(encoding="utf-8")
    new = filled(text, RESULTS)
    if new == text:
        return
    if check:
        sys.exit("error: README.md has other GPU figures than benchmarks/results; run python scripts/gpu_figures.py")
    README.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
