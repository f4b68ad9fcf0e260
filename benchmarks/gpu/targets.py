"""What sftkit wants to reach on an 80 GB H100, and whether it does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gpu.cases import Case
from gpu.head import SIZES

#: Tokens a second, as a multiple of TRL's with its defaults.
TIMES_TRL = {"0.6B full packed": 1.3, "8B lora packed": 1.15}
#: Share of the operations that the device can do.
MFU = {"8B full packed": 0.45}
HEAD = (("ms", 80.0, "ms"), ("peak_gib", 6.0, "GiB"))


def targets(step: dict[str, dict[str, Any]], head: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each target, the best value of sftkit's settings, and whether it is met; None where nothing was measured."""
    for group, least in TIMES_TRL.items():
        yield _judged(f"{group}: tokens/s ≥ {least:g} × TRL's default", step, group, "times_trl", least)
    for group, least in MFU.items():
        yield _judged(f"{group}: MFU ≥ {least:.0%}", step, group, "mfu", least)
    ours = head.get("sftkit", {})
    whole = all(ours.get(name) == size for name, size in SIZES.items())
    size = f"{SIZES['tokens']:,} × {SIZES['vocabulary']:,} × {SIZES['hidden']:,}"
    for key, most, unit in HEAD:
        value = ours["trained"][key] if whole else None
        met = None if value is None else value <= most
        yield {"target": f"loss head, {size}: ≤ {most:g} {unit}", "value": value, "met": met, "by": ""}


def _judged(text: str, step: dict[str, dict[str, Any]], group: str, key: str, least: float) -> dict[str, Any]:
    ours = {
        case.setting: entry[key]
        for name, entry in step.items()
        if (case := Case.of(name)).ours and case.group == group and entry.get(key) is not None
    }
    if not ours:
        return {"target": text, "value": None, "met": None, "by": ""}
    best = max(ours, key=lambda setting: ours[setting])
    return {"target": text, "value": ours[best], "met": ours[best] >= least, "by": best}


def verdict(target: dict[str, Any]) -> str:
    """``met``, ``missed`` or ``not measured``."""
    return {None: "not measured", True: "met", False: "missed"}[target["met"]]
