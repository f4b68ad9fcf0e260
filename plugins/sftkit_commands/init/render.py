"""The new YAML file with its comments, and the lists of what was translated, as tables and as plain data."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit_commands.init.translation import Entry, Kind, Translation

if TYPE_CHECKING:
    from rich.console import Console

SECTIONS = ("model", "data", "train", "evaluate", "run", "plugins")
#: The keys that come first in their sections, in this order.
ORDER = (
    *("name", "train", "mix", "mix_until", "subset", "split", "eval", "max_length", "truncation"),
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "per_device_eval_batch_size"),
    *("gradient_accumulation_steps", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps"),
    *("optim", "optim_args", "weight_decay", "max_grad_norm", "bf16", "fp16", "tf32", "gradient_checkpointing"),
    *("gradient_checkpointing_kwargs", "eval_strategy", "eval_steps", "eval_on_start", "save_strategy", "save_steps"),
    *("save_total_limit", "load_best_model_at_end", "logging_steps", "report_to", "run_name", "output_dir"),
)
HEADINGS: dict[Kind, str] = {
    "lost": "Not translated",
    "unknown": "Unknown keys, which {} does not have either",
    "always": "Needs no counterpart",
    "translated": "Translated",
}
WIDTH = 100


def yaml_of(t: Translation, source: str) -> str:
    """The text of the new file.

    Args:
        t: the finished translation.
        source: name of the file that was translated.
    """
    lines = [f"# Translated from {source} ({t.peer}) by `sftkit init --from`."]
    for remark in t.remarks:
        lines += ["#", *textwrap.wrap(remark, WIDTH, initial_indent="# ", subsequent_indent="# ")]
    for kind in ("lost", "unknown", "always"):
        lines += _listed(t, kind)
    differing = [entry for entry in t.of_kind("translated") if entry.note]
    if differing:
        lines += ["#", "# Notes:", *(line for entry in differing for line in _comment(entry, entry.note))]
    return "\n".join([*lines, "", *sections(t.values, t.sources)]) + "\n"


def sections(values: dict[str, Any], sources: dict[str, str]) -> list[str]:
    """The lines of a configuration, one per key, each with a comment if its source is known by another name."""
    lines: list[str] = []
    for section in [name for name in SECTIONS if values.get(name)]:
        lines.append(f"{section}:")
        for key in sorted(values[section], key=_place):
            value = values[section][key]
            source = sources.get(f"{section}.{key}", "")
            remark = f"  # {source}" if source and source.split(".")[-1] != key else ""
            if section == "plugins" and len(flow(value)) > WIDTH:
                lines.append(f"  {key}:")
                lines += [f"    {name}: {flow(item)}" for name, item in value.items()]
            else:
                lines.append(f"  {flow(key)}: {flow(value)}{remark}")
    return lines


def _place(key: str) -> int:
    return ORDER.index(key) if key in ORDER else len(ORDER)


def output_of(file: Path) -> str:
    """The run directory that a configuration names; empty if it names none."""
    import yaml

    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    return str((values.get("train") or {}).get("output_dir") or "")


def flow(value: Any) -> str:
    """A value as YAML on one line."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")


def _listed(t: Translation, kind: Kind) -> list[str]:
    found = t.of_kind(kind)
    if not found:
        return []
    lines = ["#", f"# {HEADINGS[kind].format(t.peer)}:"]
    for entry in found:
        lines += _comment(entry, entry.note, entry.fix)
    return lines


def _comment(entry: Entry, note: str, fix: str = "") -> list[str]:
    text = f"{entry.key}: {entry.shown}"
    text += f" -- {note}" if note else ""
    text += f"; instead: {fix}" if fix else ""
    fold = textwrap.TextWrapper(
        WIDTH, initial_indent="# - ", subsequent_indent="#   ", break_long_words=False, break_on_hyphens=False
    )
    return fold.wrap(text)


def as_dict(t: Translation) -> dict[str, Any]:
    """Plain data, for ``--json``."""
    kinds: tuple[Kind, ...] = ("translated", "always", "lost", "unknown")
    lists: dict[str, Any] = {kind: [_plain(entry) for entry in t.of_kind(kind)] for kind in kinds}
    written = {target: t.value(target) for target in t.defaults}
    return {"from": t.peer, **lists, "defaults": written, "files": sorted(t.files), "remarks": t.remarks}


def _plain(entry: Entry) -> dict[str, Any]:
    named = {"key": entry.key, "value": entry.shown, "target": entry.target, "note": entry.note, "fix": entry.fix}
    return {name: text for name, text in named.items() if text or name in ("key", "value")}


def show(screen: Console, t: Translation) -> None:
    """Print the lists: what was not translated comes last, where it is seen."""
    screen.print(f"Translated from {t.peer}", style="bold", markup=False)
    for entry in t.of_kind("translated"):
        _line(screen, f"{entry.key}: {entry.shown}", entry.target, entry.note)
    for target in t.defaults:
        _line(screen, f"default: {flow(t.value(target))}", target)
    if always := t.of_kind("always"):
        screen.print(f"\n{HEADINGS['always']}", style="bold", markup=False)
        for entry in always:
            _line(screen, f"{entry.key}: {entry.shown}", "", entry.note)
    for kind in ("unknown", "lost"):
        if found := t.of_kind(kind):
            screen.print(f"\n{HEADINGS[kind].format(t.peer)}", style="bold yellow", markup=False)
            for entry in found:
                _line(screen, f"{entry.key}: {entry.shown}", "", entry.note, entry.fix)
    for remark in t.remarks:
        screen.print()
        folded(screen, remark, "yellow")


def _line(screen: Console, what: str, target: str, note: str = "", fix: str = "") -> None:
    """One key, folded between words, with what became of it."""
    from rich.padding import Padding
    from rich.text import Text

    text = Text(what)
    text.append(f" -> {target}" if target else "", style="green")
    text.append(f"\n  {note}" if note else "", style="dim")
    text.append(f"\n  instead: {fix}" if fix else "")
    screen.print(Padding(text, (0, 0, 0, 2)), soft_wrap=False)


def folded(screen: Console, text: str, style: str = "") -> None:
    """A line that is folded between words, also where the console leaves that to the terminal."""
    from rich.text import Text

    screen.print(Text(text, style=style), soft_wrap=False)
