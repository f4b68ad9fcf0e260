"""The page of a card's results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from gpu.cases import Case
from gpu.correctness import BAD
from gpu.targets import verdict

STEP = ("setting", "tokens/s", "trained/s", "step ms", "peak GiB", "MFU", "× TRL", "× best TRL", "attention")
HEAD = ("head", "ms", "GiB", "ms, frozen", "GiB, frozen", "loss error", "hidden error", "weight error")
KERNELS = ("kernel", "class", "launched by", "ms a step", "calls a step", "share")
NOTES = """\
Each setting is a process of its own, on the same documents, tokenizer, weights, optimizer and order. A step ends when
the device is idle; rates are medians over the steps after a warm-up. Full fine-tuning has weights, gradients and AdamW
in bfloat16; LoRA (rank 16, all linear layers) has a base in bfloat16 and adapters in float32. *× TRL* compares with
TRL's defaults, which checkpoint activations, and *× best TRL* with the fastest of TRL's settings in the same run. Where
attention is `sdpa`, packed rows take a mask of positions × positions, which rules out flash kernels; TRL lays the rows
of a packed batch behind one another, and then the mask is that of the whole batch. MFU counts necessary operations
only: causal attention within documents, the head for trained tokens, 4 a frozen weight; recomputed activations once."""
HEAD_NOTES = """\
Forward and backward from hidden states to the mean cross-entropy; median time, and peak memory above the inputs.
*Frozen*: the head's weights get no gradient, as with LoRA. Errors are relative, against plain cross-entropy in float32
on a part of the tokens: of the loss, and the norm of the difference of the gradients."""
PROFILE_NOTES = """\
Shares of a step without the profiler, which slows the host down; *idle* is the part of it in which no kernel ran. A
kernel belongs to the first class that fits: *optimizer* and *loss* by the operators around its launch (AdamW's step and
the clipping; the function that computes the loss and its gradients, so the head's products count as loss), *attention*
and *GEMM* by the operator or the kernel's name. *Other* is the rest: norms, rotations, activation functions, copies."""


def page(data: dict[str, Any]) -> str:
    """The page, in Markdown."""
    parts = [f"# sftkit on {data['card']}", *_overview(data), "## Targets", _target_table(data["targets"])]
    parts += ["## Correctness", *_tests(data["tests"]), "## The step", NOTES]
    groups = dict.fromkeys(Case.of(name).group for name in data["step"])
    for group in groups:
        entries = {name: entry for name, entry in data["step"].items() if Case.of(name).group == group}
        parts += [f"### {group}", *_step(entries, len(data["runs"]))]
    parts += ["## The loss head alone", HEAD_NOTES, *_head(data["head"])]
    parts += ["## Profile", PROFILE_NOTES, *_profile(data["profile"]), *_recorded(data["tests"])]
    return "\n\n".join(parts) + "\n"


def _table(columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    columns = list(columns)
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _overview(data: dict[str, Any]) -> Iterator[str]:
    for number, run in enumerate(data["runs"], 1):
        environment = run["environment"]
        gpu = environment.get("gpu", {})
        device = run["device"]
        lines = [f"Run {number}, {run['when']}, commit {environment['commit'] or 'unknown'}, `{run['command']}`."]
        lines += [f"Driver {gpu['driver_version']}, {gpu['memory.total']}, {gpu['power.limit']}."] if gpu else []
        packages = ", ".join(f"{name} {version}" for name, version in environment["packages"].items())
        lines += [f"Python {environment['python']}, CUDA {device['cuda'] or 'none'}, {packages}."]
        lines += [f"sftkit is {environment['sftkit']}."]
        lines += [f"Lengths of documents: {run['lengths']}. {run['start']}"]
        parts = [f"{name} {part['seconds']:.0f} s{_cut(part)}" for name, part in run["parts"].items()]
        lines += [f"Time: {', '.join(parts) or 'no part has ended'}."]
        yield "\n".join(lines)
    yield from (
        [] if data["card"] != "toy-cpu" else ["**Toy sizes on a CPU: this tries the code and measures nothing.**"]
    )


def _cut(part: dict[str, Any]) -> str:
    if "reason" in part:
        return f" ({part['reason']})"
    return " (cut off)" if part.get("cut") else ""


def _target_table(targets: list[dict[str, Any]]) -> str:
    rows = []
    for target in targets:
        value = "" if target["value"] is None else f"{target['value']:,.4g}"
        rows.append([target["target"], value, target["by"], verdict(target)])
    return _table(("target", "value", "by", ""), rows)


def _tests(tests: dict[str, Any]) -> Iterator[str]:
    if not tests:
        yield "Not reached."
        return
    counts = Counter(test["outcome"] for test in tests.values())
    yield ", ".join(f"{counts[outcome]} {outcome}" for outcome in sorted(counts)) + "."
    for outcomes in (BAD, ("skipped",)):
        found = {name: test for name, test in tests.items() if test["outcome"] in outcomes}
        if found:
            rows = [[f"`{name}`", test["outcome"], test.get("reason", "")] for name, test in found.items()]
            yield _table(("test", "outcome", "reason"), rows)


def _recorded(tests: dict[str, Any]) -> Iterator[str]:
    rows = [
        [f"`{name.rpartition('::')[2]}`", "; ".join(f"{what}: {value}" for what, value in test["values"].items())]
        for name, test in tests.items()
        if "values" in test
    ]
    if rows:
        yield "## Recorded by the tests"
        yield _table(("test", "recorded"), rows)


def _step(entries: dict[str, dict[str, Any]], runs: int) -> Iterator[str]:
    done = {Case.of(name).setting: entry for name, entry in entries.items() if entry["status"] == "done"}
    if done:
        columns = (*STEP, *(["run"] if runs > 1 else []))
        rows = [[*_figures(name, entry), *([entry["run"] + 1] if runs > 1 else [])] for name, entry in done.items()]
        yield _table(columns, sorted(rows, key=lambda row: -float(row[1].replace(",", ""))))
    others = [(Case.of(name).setting, entry) for name, entry in entries.items() if entry["status"] != "done"]
    if others:
        yield _list(others)


def _list(entries: Iterable[tuple[str, dict[str, Any]]]) -> str:
    return "\n".join(
        f"- {name}: {entry['status']}" + (f": {entry['reason']}" if entry.get("reason") else "")
        for name, entry in entries
    )


def _figures(name: str, entry: dict[str, Any]) -> list[str]:
    ratios = [f"{entry[key]:.2f}" if key in entry else "" for key in ("times_trl", "times_best_trl")]
    figures = [f"{entry[key]:,.0f}" for key in ("tokens_per_second", "trained_tokens_per_second")]
    figures += [f"{entry['step_ms']:,.1f}", f"{entry['peak_gib']:.1f}", f"{entry['mfu']:.1%}"]
    return [name, *figures, *ratios, entry["attention"]]


def _head(entries: dict[str, dict[str, Any]]) -> Iterator[str]:
    done = {name: entry for name, entry in entries.items() if entry["status"] == "done"}
    if done:
        size = next(iter(done.values()))
        yield f"{size['tokens']:,} tokens, vocabulary {size['vocabulary']:,}, hidden size {size['hidden']:,}."
        rows = []
        for name, entry in done.items():
            figures = [f"{entry[kind][key]:.4g}" for kind in ("trained", "frozen") for key in ("ms", "peak_gib")]
            rows.append(
                [name, *figures, *(f"{entry[key]:.1e}" for key in ("loss_error", "hidden_error", "weight_error"))]
            )
        yield _table(HEAD, rows)
    if others := [(name, entry) for name, entry in entries.items() if entry["status"] != "done"]:
        yield _list(others)


def _profile(entry: dict[str, Any]) -> Iterator[str]:
    if entry["status"] != "done":
        yield _list([("profile", entry)])
        return
    made = entry["profile"]
    yield (
        f"{entry['name']}: a step takes {made['step_ms']:,.1f} ms ({made['profiled_step_ms']:,.1f} under the "
        f"profiler), and the device works for {made['busy_ms']:,.1f} of them."
    )
    yield _table(("part of the step", "share"), ([name, f"{share:.1%}"] for name, share in made["shares"].items()))
    rows = []
    for row in made["kernels"]:
        figures = [f"{row['ms']:.3f}", f"{row['calls']:g}", f"{row['share']:.1%}"]
        rows.append([f"`{row['name']}`", row["class"], row["launched_by"], *figures])
    yield _table(KERNELS, rows)
