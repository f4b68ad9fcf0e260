"""Put what 8 and 512 GPUs would do into docs/scaling.md; with --check, fail where it differs.

    python scripts/scaling_page.py [--check]

Measured: one GPU's step, from the newest `benchmarks/results/gpu-*.json`; saving, preparation and memory, from
`benchmarks/results/scaling-*.json` (``python benchmarks/scaling.py --json``). Assumed: the networks and disks below.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import _pages

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs" / "scaling.md", ROOT / "benchmarks" / "results"
START, END = "<!-- computed by scripts/scaling_page.py -->", "<!-- end of what is computed -->"

MEASURED_STEP = "8B full packed: "
WEIGHTS = 8.03e9  # of the model that was measured
LAYERS = 36
STEP_TOKENS = 8192  # of one GPU and step, as measured
GPUS_PER_NODE = 8
SIZES = (8, 512)
DATA_ROWS, DATA_TOKENS = 100e6, 512  # rows, and tokens of each


class Network(NamedTuple):
    """What is assumed of the connection between machines.

    Attributes:
        name: in words.
        node: bytes per second into one machine, as collectives reach them.
    """

    name: str
    node: float


INSIDE = Network("inside one machine: NVLink, 300 GB/s of 450", 300e9)
FAST = Network("8 × 400 Gb/s for each machine, 80 % of it", 320e9)
SLOW = Network("1 × 100 Gb/s for each machine, 80 % of it", 10e9)
DISK = 2e9  # bytes per second that one machine writes to shared storage


class Pieces(NamedTuple):
    """What was measured.

    Attributes:
        step: seconds of a step of one GPU that holds the whole model.
        card: the GPU.
        save: bytes per second that one process serializes, syncs and digests.
        prepare: tokens per second of one core that prepares data.
        sampler: bytes per row of the order of the rows.
    """

    step: float
    card: str
    save: float
    prepare: float
    sampler: float


def pieces(folder: Path) -> Pieces:
    """The newest measurements."""
    gpu = json.loads(max(folder.glob("gpu-*.json")).read_text(encoding="utf-8"))
    own = json.loads(max(folder.glob("scaling-*.json")).read_text(encoding="utf-8"))
    steps = [
        STEP_TOKENS / entry["tokens_per_second"]
        for name, entry in gpu["step"].items()
        if name.startswith(f"{MEASURED_STEP}sftkit") and entry["status"] == "done"
    ]
    saves = [entry for name, entry in own["save"].items() if name.endswith("fsdp")]
    rate = max(entry["GB"] * 1e9 / entry["save s"] for entry in saves) / 2  # of two processes
    sampler = min(entry["bytes per row"] for name, entry in own["sampler"].items() if name.startswith("random"))
    return Pieces(min(steps), gpu["card"], rate, own["prepare"]["tokens per second of one core"], sampler)


def memory(gpus: int) -> float:
    """Bytes of weights, gradients and AdamW's state in bfloat16 on each GPU, and two gathered layers."""
    return WEIGHTS * (2 + 2 + 4) / gpus + 2 * WEIGHTS / LAYERS * 2


def communication(gpus: int, network: Network) -> float:
    """Seconds in which fsdp's collectives of a step move weights twice and gradients once, in bfloat16."""
    volume = 3 * 2 * WEIGHTS * (gpus - 1) / gpus
    return volume / (network if gpus > GPUS_PER_NODE else INSIDE).node


def saving(gpus: int, rate: float) -> float:
    """Seconds of a sharded checkpoint: each process writes its part, and the processes of a machine share its disk."""
    part = WEIGHTS * (2 + 4) / gpus
    return max(part / rate, part * min(gpus, GPUS_PER_NODE) / DISK)


def block(folder: Path) -> str:
    """The tables."""
    found = pieces(folder)
    lines = ["| | " + " | ".join(f"{gpus} GPUs" for gpus in SIZES) + " |", "|---|" + "---|" * len(SIZES)]

    def row(name: str, *cells: str) -> None:
        lines.append(f"| {name} | " + " | ".join(cells) + " |")

    row("memory of weights, gradients and AdamW on each GPU", *(f"{memory(n) / 1e9:.1f} GB" for n in SIZES))
    row("computing a step", *(f"{found.step:.2f} s" for _ in SIZES))
    for network in (FAST, SLOW):
        cells = [communication(n, network) for n in SIZES]
        row(f"communication, {network.name}", *(f"{seconds:.2f} s" for seconds in cells))
        times = [max(found.step, seconds) / found.step for seconds in cells]
        row("→ the step, if the two overlap", *(f"{found.step * each:.2f} s ({1 / each:.0%})" for each in times))
    rates = [STEP_TOKENS * n / found.step for n in SIZES]
    row("tokens of a step", *(f"{STEP_TOKENS * n:,}" for n in SIZES))
    row(
        "an epoch of 100M rows of 512 tokens", *(f"{DATA_ROWS * DATA_TOKENS / rate / 86400:.1f} days" for rate in rates)
    )
    row("prepared data that is read", *(f"{rate * 8 / 1e6:,.1f} MB/s" for rate in rates))
    row("cores for a stream that is prepared during the run", *(f"{-(-rate // found.prepare):,.0f}" for rate in rates))
    row("a sharded checkpoint of weights and AdamW", *(f"{saving(n, found.save):.1f} s" for n in SIZES))
    row(
        "memory of the order of 100M rows, all processes",
        *(f"{found.sampler * DATA_ROWS * n / 1e9:.2f} GB" for n in SIZES),
    )
    assumed = f"{DISK / 1e9:.0f} GB/s for each machine's writes to shared storage"
    before = (
        f"A model of {WEIGHTS / 1e9:.0f} billion weights, full fine-tuning in bfloat16 with the plugin `fsdp`, {STEP_TOKENS:,} tokens "
        f"for each GPU and step. Measured: the step of one {found.card}; on the CPU, {found.save / 1e9:.2f} GB/s that a process saves, "
        f"{found.prepare:,.0f} tokens in a second that one core prepares, {found.sampler:.3f} bytes a row of the sampler. "
        f"Assumed: the networks in the table, {assumed}, {INSIDE.name}."
    )
    return "\n".join([before, "", *lines])


def filled(text: str, folder: Path) -> str:
    """A page with the tables between its two marks."""
    return _pages.between(PAGE, text, START, END, block(folder))


def pages() -> dict[Path, str]:
    """The page as it should be."""
    return {PAGE: filled(PAGE.read_text(encoding="utf-8"), RESULTS)}


if __name__ == "__main__":
    _pages.write(__doc__, "scaling_page.py", pages)
