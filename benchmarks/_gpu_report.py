"""What the GPU benchmark makes of its figures: ratios, targets, tables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _gpu_cases import HEAD, HEAD_GIB, HEAD_MS, MFU_LEAST, PEER_ALIKE, TIMES_TRL, TRL

COLUMNS = ("setting", "tokens/s", "trained/s", "step ms", "peak GiB", "MFU", "× trl", "× alike")


def add_ratios(results: dict[str, dict[str, Any]]) -> None:
    """How many times as fast as TRL's default each is, and as TRL's run that keeps activations as sftkit does."""
    for name, told in results.items():
        group = name.partition(": ")[0]
        for key, peer in (("times_trl", TRL), ("times_alike", PEER_ALIKE)):
            beside = results.get(f"{group}: {peer}", {})
            if "tokens_per_second" in told and "tokens_per_second" in beside:
                told[key] = round(told["tokens_per_second"] / beside["tokens_per_second"], 3)


def targets(results: dict[str, dict[str, Any]], head: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Each target, the best of sftkit's settings for it, and whether it is met; None where it was not measured."""
    ours = {name: told for name, told in results.items() if name.partition(": ")[2].startswith("sftkit")}
    for group in dict.fromkeys(name.partition(": ")[0] for name in ours):
        shape, train, _ = group.split()
        some = {name: told for name, told in ours.items() if name.startswith(f"{group}: ")}
        wanted = TIMES_TRL.get(train)
        if wanted and shape in wanted[0]:
            yield judged(f"{group}: tokens/s ≥ {wanted[1]} × TRL's default", some, "times_trl", wanted[1])
        if shape in MFU_LEAST and group.endswith("packed") and not group.endswith("unpacked"):
            yield judged(f"{group}: MFU ≥ {MFU_LEAST[shape]:.0%}", some, "mfu", MFU_LEAST[shape])
    size = f"{HEAD['tokens']:,} tokens × {HEAD['vocabulary']:,} × {HEAD['hidden']:,}"
    whole = {key: head.get(key) for key in HEAD} == HEAD
    for key, limit, unit in (("ms", HEAD_MS, "ms"), ("peak_gib", HEAD_GIB, "GiB")):
        value = head["trained"][key] if whole else None
        met = None if value is None else value <= limit
        yield {"target": f"loss head, {size}: ≤ {limit:g} {unit}", "value": value, "met": met}


def judged(target: str, some: dict[str, dict[str, Any]], key: str, least: float) -> dict[str, Any]:
    best = max((name for name, told in some.items() if key in told), key=lambda name: some[name][key], default=None)
    if best is None:
        return {"target": target, "value": None, "met": None}
    return {"target": target, "value": some[best][key], "met": some[best][key] >= least, "by": best.partition(": ")[2]}


def tables(results: dict[str, dict[str, Any]]) -> dict[str, list[list[str]]]:
    """The rows of what was measured, by group."""
    found: dict[str, list[list[str]]] = {}
    for name, told in results.items():
        group, _, setting = name.partition(": ")
        if "tokens_per_second" in told:
            ratios = [f"{told[key]:.2f}" if key in told else "" for key in ("times_trl", "times_alike")]
            figures = [f"{told['tokens_per_second']:,.0f}", f"{told['trained_tokens_per_second']:,.0f}"]
            figures += [f"{told['step_ms']:,.1f}", f"{told['peak_gib']:.1f}", f"{told['mfu']:.1%}"]
            found.setdefault(group, []).append([setting, *figures, *ratios])
    return found


def notes(result: dict[str, Any]) -> list[str]:
    """What a person has to know beside the tables: what was not measured, the head, the targets."""
    lines = []
    for name, told in result["cases"].items():
        if "tokens_per_second" not in told:
            why = f"failed: {told['error']}" if "error" in told else f"not measured: {told['not measured']}"
            lines.append(f"{name} {why}")
    head = result["head"]
    lines += [
        f"loss head alone, weights {name}: {head[name]['ms']:,} ms, {head[name]['peak_gib']} GiB"
        for name in ("trained", "frozen")
        if name in head
    ]
    if "error" in head:
        lines.append(f"loss head alone failed: {head['error']}")
    lines += [f"target of {told_target(target)}" for target in result["targets"]]
    return [*lines, "× alike: against TRL without gradient checkpointing, which keeps activations as sftkit does"]


def told_target(target: dict[str, Any]) -> str:
    if target["met"] is None:
        return f"{target['target']}: not measured"
    by = f" ({target['by']})" if target.get("by") else ""
    return f"{target['target']}: {target['value']:,.4g}{by}, {'met' if target['met'] else 'missed'}"


def write(directory: Path, result: dict[str, Any], title: str) -> None:
    """The results as JSON, and as Markdown for people."""
    directory.mkdir(parents=True, exist_ok=True)
    name = "-".join(["gpu", *re.findall(r"[a-z0-9]+", result["device"]["name"].lower())])
    (directory / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    lines = [f"# {title}", ""]
    for group, rows in tables(result["cases"]).items():
        lines += [f"## {group}", "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        lines += [*("| " + " | ".join(row) + " |" for row in rows), ""]
    lines += [f"- {line}" for line in notes(result)]
    (directory / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
