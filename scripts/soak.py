"""Long runs and kills: what takes too long for `make test-all`.

    python scripts/soak.py [--part endurance|kills] [--steps 10000] [--kills 100] [--seed 0] [--streaming] [--out FILE]

Endurance: one run of 10,000 steps with saves, evaluations and packing. From a tenth of it on, its memory may grow by
20 MB, and its open files and threads must stay constant. Kills: runs of 2,000 steps, which save every third step, are
killed (SIGKILL) at random moments, many of them within a save, and resumed; losses and final weights must be bitwise
those of a run that nothing disturbs. Exit code 0: all of it holds; 1: something does not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["endurance", "kills"], help="only this part (default: both)")
    parser.add_argument("--steps", type=int, default=10_000, help="of the long run (default: 10000)")
    parser.add_argument("--kills", type=int, default=100, help="number of kills (default: 100)")
    parser.add_argument("--run-steps", type=int, default=2000, help="of each run that is killed (default: 2000)")
    parser.add_argument("--seconds", type=float, default=3600, help="time for the kills (default: 3600)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (default: 0)")
    parser.add_argument("--streaming", action="store_true", help="stream the data")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="an empty directory for the runs, which are kept")
    return parser.parse_args()


def show(results: dict[str, dict[str, Any]]) -> None:
    """A table of what was measured, then each problem."""
    from rich.console import Console
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    for name in ("part", "measured", "allowed", "seconds"):
        table.add_column(name)
    if (long := results.get("endurance")) and "growth" in long:
        first = next(item for item in long["samples"] if item["step"] >= long["samples"][-1]["step"] * 0.1)
        table.add_row("memory", f"{first['rss']:.0f} MB, grows by {long['growth']} MB", "20 MB", str(long["seconds"]))
        table.add_row("open files", ", ".join(map(str, long["files"])), "constant", "")
        table.add_row("threads", ", ".join(map(str, long["threads"])), "constant", "")
    if kills := results.get("kills"):
        table.add_row("kills", f"{kills['equal']} of {kills['kills']} end equal", "all", str(kills["seconds"]))
        moments = ", ".join(f"{number} in a {moment}" for moment, number in kills["moments"].items())
        table.add_row("moments", moments.replace("a start", "the start"), "", "")
    Console(highlight=False, soft_wrap=True).print(table)
    for name, result in results.items():
        for problem in result["problems"]:
            print(f"{name}: {problem}")


def main() -> int:
    chosen = flags()
    from _soak_endurance import endure
    from _soak_kills import Kills

    from sftkit.testing.processes import warm_processes

    context = warm_processes()
    place = chosen.keep or Path(tempfile.mkdtemp(prefix="sftkit-soak-"))
    results: dict[str, dict[str, Any]] = {}
    try:
        if chosen.part != "kills":
            print(f"endurance: {chosen.steps:,} steps", flush=True)
            results["endurance"] = endure(context, place / "endurance", chosen.steps, chosen.streaming)
        if chosen.part != "endurance":
            print(f"kills: {chosen.kills}, seed {chosen.seed}", flush=True)
            kills = Kills(context, place / "kills", chosen.run_steps, chosen.seed, chosen.streaming)
            results["kills"] = kills.run(chosen.kills, chosen.seconds)
    finally:
        if chosen.keep is None:
            shutil.rmtree(place, ignore_errors=True)
    show(results)
    if chosen.out is not None:
        chosen.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return int(any(result["problems"] for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
