"""What a report says in words and tables: facts of runs, what happened to their data, and how several runs differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftkit.api import absolute_at, notes_of, smaller_is_better, without_fix, without_notes
from sftkit_commands.report.reading import Run

PLAIN = {"rows", "tokens", "trained tokens", "fingerprint", "rows read", "streaming", "sources"}
LOADED = "loaded by the program"
REASONS = {
    "running": "The run goes on. This report shows what it has logged so far.",
    "done": "",
    "interrupted": "The run can be continued with --resume.",
    "failed": "",
    "killed": "The run ended without recording why: no process holds its directory. It was killed, or its machine was "
    "switched off. Continue it with --resume.",
}


@dataclass(frozen=True)
class Bar:
    """A labelled number, drawn as a bar.

    Attributes:
        label: what it is of.
        value: its text.
        part: how long the bar is, from 0 to 1.
    """

    label: str
    value: str
    part: float


@dataclass(frozen=True)
class Finding:
    """What happened to the data, with the advice there is."""

    split: str
    what: str
    number: int | None
    fix: str


def duration(seconds: float) -> str:
    """A duration for people."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"


def number(value: Any) -> str:
    """A value for people: four significant digits, and thousands apart."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    if isinstance(value, int) or (value == int(value) and abs(value) >= 1000):
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 10000 else f"{value:.4g}"


def reason(run: Run) -> str:
    """Why a run has its status, in words."""
    return f"{run.manifest.get('error') or ''} {REASONS[run.status]}".strip() if run.status != "done" else ""


def header(run: Run) -> list[tuple[str, str]]:
    """The most important facts of a run."""
    config, parts = run.manifest["config"], run.manifest["parts"]
    train = run.manifest["data"].get("train", {})
    model = config["model"].get("name")
    path = Path(model or "")
    names = config["data"].get("mix") or config["data"].get("train") or LOADED
    data = ", ".join(Path(name).name for name in ([names] if isinstance(names, str) else names))
    size = "streamed" if train.get("streaming") else f"{number(train.get('rows'))} rows" if train else ""
    devices = list(dict.fromkeys(part.get("device") for part in parts if part.get("device")))
    processes = parts[-1].get("world_size") or 1
    return [
        ("Model", str(Path(*path.parts[-2:]) if path.is_absolute() else path) if model else LOADED),
        ("Data", f"{data} ({size})" if size else data),
        ("Steps", number(run.steps)),
        ("Duration", duration(run.seconds)),
        ("Device", ", ".join(devices) + (f", {processes} processes" if processes > 1 else "")),
        ("Started", str(parts[0]["started"]).replace("T", " ").replace("+00:00", " UTC")),
    ]


def metric_rows(runs: Sequence[Run]) -> list[tuple[str, list[tuple[Any, Any, bool]]]]:
    """Each metric with its value before, its value now, and whether that is the best of several runs."""
    all_metrics = [run.metrics for run in runs]
    names = dict.fromkeys(name for metrics in all_metrics for name in metrics if not name.endswith("_before"))
    rows = []
    for name in names:
        values = [metrics.get(name) for metrics in all_metrics]
        befores = [metrics.get(f"{name}_before") for metrics in all_metrics]
        best = best_of(name, values) if len(runs) > 1 else None
        bests = [best is not None and value == best for value in values]
        rows.append((name, list(zip(befores, values, bests, strict=True))))
    return rows


def best_of(name: str, values: Iterable[Any]) -> float | None:
    """The best of the values of a metric; None if it is unknown which values are good, or all are the same."""
    known = [value for value in values if isinstance(value, int | float) and value == value]
    if len({*known}) < 2:
        return None
    smaller = smaller_is_better(name)
    return None if smaller is None else min(known) if smaller else max(known)


def findings(run: Run) -> list[Finding]:
    """What was dropped, cut or ignored, and what the checks advise."""
    found = []
    for split, counts in run.manifest["data"].items():
        for what, count in without_notes(counts).items():
            if what not in PLAIN and isinstance(count, int):
                found.append(Finding(split, what, count, ""))
        for note, count in notes_of(counts).items():
            what, fix = without_fix(note)
            found.append(Finding(split, what, count, fix))
    for warning in run.manifest.get("warnings", []):
        found.append(Finding(str(warning["name"]), str(warning["what"]), None, str(warning["fix"])))
    if skipped := run.manifest.get("skipped_steps"):
        found.append(Finding("training", "steps skipped, since their loss or gradient was not finite", skipped, ""))
    return found


def data_table(run: Run) -> list[tuple[str, list[str]]]:
    """Rows, tokens and trained tokens of each split."""
    names = ("rows read", "rows", "tokens", "trained tokens")
    return [(split, [number(counts.get(name)) for name in names]) for split, counts in run.manifest["data"].items()]


def source_table(run: Run) -> list[tuple[str, list[str]]]:
    """Of each source of the training data, its tokens, what was trained of it, and its losses; empty for one source."""
    trained, prepared = run.trained, run.manifest["data"].get("train", {}).get("sources", {})
    rows = []
    for name, source in trained["sources"].items():
        of, share = prepared.get(name, {}), f"{source['tokens'] / max(trained['tokens'], 1):.1%}"
        first = next((entry[f"loss_{name}"] for entry in run.log if f"loss_{name}" in entry), None)
        values = (of.get("tokens"), of.get("trained tokens"), source["tokens"], share, first, source["loss"])
        rows.append((name, [number(value) for value in values]))
    return rows


def length_bars(run: Run) -> dict[str, list[Bar]]:
    """Of each split, how many rows have which length, before they were cut and packed."""
    found = {}
    for split, stats in run.manifest.get("stats", {}).items():
        lengths = {int(bound): count for bound, count in stats.get("lengths", {}).items()}
        most = max(lengths.values(), default=0)
        found[split] = [Bar(_range(bound), f"{count:,} rows", count / most) for bound, count in sorted(lengths.items())]
    return {split: bars for split, bars in found.items() if bars}


def _range(bound: int) -> str:
    """The lengths that are rounded up to a power of two."""
    return f"{bound // 2 + 1:,} to {bound:,}" if bound > 2 else str(bound)


def fill_bars(run: Run) -> list[Bar]:
    """How full packed rows are, by split."""
    longest = run.manifest["config"]["data"].get("max_length")
    bars = []
    for split, counts in run.manifest["data"].items():
        if counts.get("documents packed") and counts.get("rows") and counts.get("tokens") and longest:
            part = counts["tokens"] / (counts["rows"] * longest)
            bars.append(Bar(split, f"{part:.1%}", min(part, 1.0)))
    return bars


def share_bars(run: Run) -> list[Bar]:
    """The trained share of the tokens of each split, and of each data source."""
    bars = []
    for split, counts in run.manifest["data"].items():
        sources = {f"{split}: {name}": of for name, of in counts.get("sources", {}).items()}
        for label, some in {split: counts, **sources}.items():
            if some.get("tokens"):
                part = some["trained tokens"] / some["tokens"]
                value = f"{part:.1%} ({some['trained tokens']:,} of {some['tokens']:,} tokens)"
                bars.append(Bar(label, value, part))
    return bars


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings by dotted key."""
    if not isinstance(values, Mapping) or (not values and prefix):
        return {prefix: {} if isinstance(values, Mapping) else values}
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The configuration keys that differ, with the value of each run; the directory of the run is left out."""
    configs = [flat(_with_absolute_paths(run.manifest)) for run in runs]
    for config, run in zip(configs, runs, strict=True):
        data = run.manifest["data"].items()
        config |= {f"content of data.{split}": str(counts.get("fingerprint", ""))[:12] for split, counts in data}
    keys = dict.fromkeys(key for config in configs for key in config)
    rows = []
    for key in keys:
        values = [_shown(config.get(key)) for config in configs]
        if len({*values}) > 1 and key != "train.output_dir":
            rows.append((key, values))
    return rows


def _with_absolute_paths(manifest: Mapping[str, Any]) -> dict[str, Any]:
    base = manifest.get("working_directory", "")
    return {
        section: {name: absolute_at((section, name), value, base) for name, value in values.items()}
        for section, values in manifest["config"].items()
    }


def _shown(value: Any) -> str:
    return "selected" if value == {} else "none" if value is None else str(value)
