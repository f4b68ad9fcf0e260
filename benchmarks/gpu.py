"""Training on one GPU: sftkit beside TRL's SFTTrainer and unsloth, taking turns in one run.

    python benchmarks/gpu.py [--quick] [--json] [--only TEXT] [--out DIR] [--unsloth-python PATH] [--toy]

Llama and Qwen shapes of 0.6B, 1B and 8B with random weights in bfloat16, which are made on the device; rows of Code
Alpaca's lengths where the real data lies beside the project, else drawn (log-normal), packed to 4,096 tokens or
unpacked. Each setting is a process of its own, and all have the same rows, optimizer and order. Warm-up steps do not
count; a step ends when the device is at rest. What runs out of memory, fails or is not there is told, and the others go
on.

TRL's default keeps no activations (gradient checkpointing): that is the peer of the targets. Its run without
checkpointing, which does the same work as sftkit's, is told beside it. `--toy` tries the whole script on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

from _data import SHARED, code_alpaca
from _gpu_cases import BATCH, HEAD, SETTINGS, SHAPES, TOY_HEAD, UNSLOTH, Case, Spec, cases, least_gib
from _gpu_report import COLUMNS, add_ratios, notes, tables, targets, write
from _report import median, program, report, versions

CHILD = str(Path(__file__).with_name("_gpu_child.py"))
QUICK_SECONDS = 440  # after which no child begins; the last may take 90 more
CHILD_SECONDS = 900
FIGURES = ("tokens_per_second", "trained_tokens_per_second", "step_ms", "peak_gib", "mfu", "tflops")


def flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the most telling settings, one round: within 9 minutes")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    only = "a case, a part of its name, or head; again for more"
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help=only)
    parser.add_argument("--out", metavar="DIR", type=Path, help="write the results there too, as JSON and as a table")
    parser.add_argument("--unsloth-python", metavar="PATH", help="a Python of an environment with unsloth")
    parser.add_argument("--peak-tflops", type=float, help="of the GPU, where its name is not known")
    parser.add_argument("--toy", action="store_true", help="tiny shapes on the CPU: tries the script, measures nothing")
    return parser.parse_args()


class Bench:
    """One run: what is available, and its children."""

    def __init__(self, given: argparse.Namespace, directory: Path) -> None:
        self.given, self.directory = given, directory
        self.device = child(["device"], 300, sys.executable)
        self.on_gpu = bool(self.device.get("cuda")) and not given.toy
        self.plugins = {info["name"]: info["status"] for info in installed_plugins()}
        self._end = time.monotonic() + (QUICK_SECONDS if given.quick else 10**9)
        rows = lengths()
        (directory / "rows.json").write_text(json.dumps(rows))
        self._average = sum(map(sum, rows)) / len(rows)
        self._rows = rows

    def missing(self, case: Case) -> str:
        """Why a case cannot be measured here; empty if it can."""
        setting = SETTINGS[case.setting]
        for plugin in setting.get("plugins", ()):
            status = self.plugins.get(plugin.partition(":")[0], "not installed")
            if "liger" in plugin and not self.on_gpu:
                return "plugin liger: needs a GPU"
            if status != "ready":
                return f"plugin {plugin.partition(':')[0]}: {status}"
        if setting.get("options", {}).get("use_liger_kernel") and not self.on_gpu:
            return "liger needs a GPU"
        if setting.get("attention") and not (self.on_gpu and find_spec("flash_attn")):
            return "needs a GPU and the package flash-attn"
        if case.setting == UNSLOTH and not self.given.unsloth_python:
            return "needs an environment of its own: --unsloth-python PATH"
        if case.setting == UNSLOTH and not self.on_gpu:
            return "unsloth needs a GPU"
        if self.on_gpu and least_gib(case) > self.device["gib"] * 0.95:
            return f"weights, gradients and optimizer alone take {least_gib(case):.0f} GiB of {self.device['gib']:.0f}"
        if time.monotonic() > self._end:
            return "no time left: run it without --quick, or with --only"
        return ""

    def measure(self, case: Case) -> dict[str, Any]:
        """One child's figures, or an ``error``."""
        spec = self.spec(case)
        path = self.directory / "spec.json"
        path.write_text(json.dumps(asdict(spec)))
        python = self.given.unsloth_python if case.setting == UNSLOTH else sys.executable
        left = self._end - time.monotonic()
        return child(["run", str(path)], min(CHILD_SECONDS, max(left, 30) + 60), python)

    def spec(self, case: Case) -> Spec:
        """What a child is told; with rows enough for its steps."""
        toy, packed = self.given.toy, case.form == "packed"
        steps, warmup = (3, 1) if toy else (8, 4) if self.given.quick else (20, 6)
        max_length = 128 if toy else 4096
        batch = BATCH[case.shape][0 if packed else 1]
        if packed:  # a row more, since what is packed never fills every row
            documents = int((batch * (steps + warmup) + 1) * max_length / min(self._average, max_length) * 1.2) + 8
        else:
            documents = batch * (steps + warmup)
        cap = max_length // 2
        rows = [self._rows[at % len(self._rows)] for at in range(documents)]
        path = self.directory / "chosen.json"
        path.write_text(json.dumps([[max(min(p, cap), 1), max(min(c, cap - 1), 1)] for p, c in rows]))
        setting = {**SETTINGS[case.setting]}
        return Spec(
            kind=setting.pop("kind"),
            shape=SHAPES[case.shape],
            train=case.train,
            packed=packed,
            batch=batch,
            max_length=max_length,
            steps=steps,
            warmup=warmup,
            rows=str(path),
            directory=str(self.directory / case.shape),
            device="cuda" if self.on_gpu else "cpu",
            peak_tflops=self.given.peak_tflops,
            **setting,
        )

    def head(self) -> dict[str, Any]:
        """The loss head alone."""
        sizes = {**(TOY_HEAD if self.given.toy else HEAD), "device": "cuda" if self.on_gpu else "cpu"}
        path = self.directory / "head.json"
        path.write_text(json.dumps(sizes))
        return child(["head", str(path)], 300, sys.executable)


def child(arguments: list[str], seconds: float, python: str) -> dict[str, Any]:
    """What a child's last line says; an ``error`` if it says nothing."""
    one = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]  # with several, a Trainer would use them all
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": one, "PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    variables["TOKENIZERS_PARALLELISM"] = "false"
    try:
        done = subprocess.run(
            [python, CHILD, *arguments], capture_output=True, text=True, timeout=seconds, env=variables
        )
    except subprocess.TimeoutExpired:
        return {"error": f"not done within {seconds:.0f} s"}
    except OSError as error:
        return {"error": f"{python}: {error.strerror}"}
    lines = done.stdout.strip().splitlines()
    try:
        told = json.loads(lines[-1])
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["nothing was printed"])[-1]
        return {"error": f"ended with exit code {done.returncode}: {last[:300]}"}
    if "error" in told:
        told["trace"] = done.stderr[-3000:]
    return told


def installed_plugins() -> list[dict[str, Any]]:
    done = subprocess.run([program("sftkit"), "plugins", "--json"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def lengths() -> list[tuple[int, int]]:
    """Tokens of prompts and completions: Code Alpaca's, else drawn from a log-normal distribution like them."""
    import numpy as np

    if SHARED.is_dir():
        from tokenizers import Tokenizer

        backend = Tokenizer.from_file(str(SHARED / "llama2_tokenizer" / "tokenizer.json"))
        sides = zip(*code_alpaca(), strict=True)
        counts = [[len(found.ids) for found in backend.encode_batch_fast(list(side))] for side in sides]
        return list(zip(*counts, strict=True))
    random = np.random.default_rng(0)
    made = [np.clip(random.lognormal(mean, 0.7, 6000).astype(int), 4, 2000).tolist() for mean in (3.6, 4.2)]
    return list(zip(*made, strict=True))


def chosen_cases(given: argparse.Namespace) -> list[Case]:
    """The cases to measure; none where only the head is asked for."""
    chosen = list(cases(given.toy, given.quick, given.only))
    if not chosen and given.only != ["head"]:
        known = "; ".join(case.name for case in cases(given.toy, given.quick, []))
        sys.exit(f"error: no case has {', '.join(given.only)} in its name -> it is head, or one of: {known}")
    return chosen


def measure_all(bench: Bench, chosen: list[Case]) -> dict[str, dict[str, Any]]:
    """Every case, those of a group taking turns; figures are medians over the rounds."""
    given = bench.given
    results: dict[str, dict[str, Any]] = {}
    for group in dict.fromkeys(case.group for case in chosen):
        found: dict[str, list[dict[str, Any]]] = {}
        for _ in range(1 if given.quick or given.toy else 2):
            for case in (case for case in chosen if case.group == group):
                before = found.setdefault(case.name, [])
                if before and "tokens_per_second" not in before[-1]:
                    continue  # it failed, or is not there: once is enough
                why = bench.missing(case)
                before.append({"not measured": why} if why else bench.measure(case))
                print(line_of(case, before[-1]), file=sys.stderr, flush=True)
        results |= {name: combined(rounds) for name, rounds in found.items()}
    return results


def line_of(case: Case, told: dict[str, Any]) -> str:
    if "tokens_per_second" in told:
        return f"{case.name}: {told['tokens_per_second']:,.0f} tokens/s"
    return f"{case.name}: {told.get('error') or told['not measured']}"


def combined(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    done = [told for told in rounds if "tokens_per_second" in told]
    if not done:
        return rounds[0]
    return {**done[0], **{name: median([told[name] for told in done]) for name in FIGURES}, "rounds": len(done)}


def main() -> None:
    given = flags()
    chosen = chosen_cases(given)
    with tempfile.TemporaryDirectory(prefix="sftkit-bench-") as directory:
        os.environ["SFTKIT_CACHE"] = f"{directory}/cache"
        bench = Bench(given, Path(directory))
        if not bench.on_gpu and not given.toy:
            print("not measured: there is no CUDA GPU here; --toy tries the script on the CPU", file=sys.stderr)
            if given.json:
                print(json.dumps({"device": bench.device, "cases": {}, "targets": []}))
            return
        head = bench.head() if not given.only or "head" in given.only else {}
        results = measure_all(bench, chosen)
    add_ratios(results)
    told = versions("sftkit", "trl", "transformers", "torch")
    device = {"name": "CPU, toy", "torch": bench.device.get("torch")} if given.toy else bench.device
    result = {
        "device": device,
        "versions": told,
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "flops": "PaLM appendix B: 6N a token (LoRA: 4N and 6 an adapter's), attention 6LHQ·Σ(document's length)²",
        "cases": results,
        "head": head,
        "targets": list(targets(results, head)),
    }
    title = f"Training on {device['name']} ({told})"
    if given.out:
        write(given.out, result, title)
    if given.json:
        print(json.dumps(result))
        return
    print(title)
    for group, rows in tables(results).items():
        report(result, f"\n{group}", COLUMNS, rows, as_json=False)
    print("", *notes(result), sep="\n")


if __name__ == "__main__":
    main()
