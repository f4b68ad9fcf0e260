"""A training step of sftkit, transformers' Trainer, TRL and plain loops, on the same model and rows.

    python benchmarks/train_step.py [--quick] [--json] [--plugin NAME]...

Completion-only loss on Code Alpaca with the Llama 2 tokenizer, batch 8, in float32, on a Llama of 4.8 million
parameters (vocabulary 32,000, hidden 128, 4 layers). Each trainer runs in a separate process on the same tokenized rows
in the same order. They take turns, since machines are shared: only ratios within one run count. The time of a step is
the median over the steps after the first few; peak memory is that of the whole process with its imports, or of the GPU
if there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["SFTKIT_CACHE"] = os.environ.get("SFTKIT_CACHE") or tempfile.mkdtemp(prefix="sftkit-bench-")

from _data import SHARED, code_alpaca
from _report import add_flags, median, report, versions

MAX_LENGTH, BATCH, WARM_UP = 512, 8, 3
TARGETS = {"transformers": 1.8, "trl": 4.0}
MOST_MEMORY = 1.4  # GB


def write_rows(directory: Path, number: int) -> None:
    """Write questions and answers in a random order, and the rows that sftkit makes of them, for the other trainers."""
    import random

    pairs = code_alpaca()
    random.Random(0).shuffle(pairs)
    lines = [json.dumps({"prompt": question, "completion": answer}) for question, answer in pairs[:number]]
    Path(directory, "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    made = pipeline(directory, "unused", 1, []).prepare().data.train
    rows = [{name: [int(value) for value in row[name]] for name in ("input_ids", "labels")} for row in made]
    Path(directory, "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def pipeline(directory: Path, output: str, steps: int, plugins: list[str], callbacks: Sequence[Any] = ()) -> Any:
    from transformers import AutoTokenizer

    from sftkit.run.pipeline import Pipeline

    return Pipeline(
        model=make_model(),
        config={"data": {"train": str(directory / "pairs.jsonl"), "max_length": MAX_LENGTH}},
        tokenizer=AutoTokenizer.from_pretrained(SHARED / "llama2_tokenizer"),
        plugins=plugins,
        train=arguments(str(directory / output), steps),
        callbacks=callbacks,
        overwrite=True,
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def make_model() -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 344}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32000, tie_word_embeddings=True, **sizes))


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Pad rows on the right to the longest."""
    import torch

    width = max(len(row["input_ids"]) for row in rows)
    fills = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    batch = {name: torch.full((len(rows), width), fill) for name, fill in fills.items()}
    for at, row in enumerate(rows):
        batch["input_ids"][at, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        batch["labels"][at, : len(row["labels"])] = torch.tensor(row["labels"])
        batch["attention_mask"][at, : len(row["input_ids"])] = 1
    return batch


def arguments(directory: str, steps: int) -> dict[str, Any]:
    return {
        "output_dir": directory,
        "max_steps": steps,
        "per_device_train_batch_size": BATCH,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


class Clock:
    """A callback of the Trainer that measures the time of each step."""

    def __new__(cls) -> Any:
        from transformers import TrainerCallback

        class Callback(TrainerCallback):
            def __init__(self) -> None:
                self.times: list[float] = []
                self.losses: list[float] = []

            def on_step_begin(self, *_: Any, **__: Any) -> None:
                _wait()
                self.since = time.perf_counter()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                _wait()
                self.times.append(time.perf_counter() - self.since)

            def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
                if "loss" in logs:
                    self.losses.append(logs["loss"])

        return Callback()


def _wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def run_sftkit(directory: Path, steps: int, plugins: list[str]) -> Any:
    clock = Clock()
    pipeline(directory, "run", steps, plugins, [clock]).run()
    return clock


def run_transformers(rows: list[dict[str, Any]], steps: int) -> Any:
    from transformers import Trainer, TrainingArguments

    clock = Clock()
    with tempfile.TemporaryDirectory() as directory:
        args = TrainingArguments(**arguments(directory, steps), remove_unused_columns=False)
        Trainer(model=make_model(), args=args, train_dataset=rows, data_collator=collate, callbacks=[clock]).train()
    return clock


def run_trl(rows: list[dict[str, Any]], steps: int) -> Any:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    clock = Clock()
    data = Dataset.from_list([{"input_ids": row["input_ids"], "labels": row["labels"]} for row in rows])
    with tempfile.TemporaryDirectory() as directory:
        extra = {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": MAX_LENGTH, "bf16": False}
        args = SFTConfig(**arguments(directory, steps), **extra, gradient_checkpointing=False)
        tokenizer = AutoTokenizer.from_pretrained(SHARED / "llama2_tokenizer")
        tokenizer.pad_token = tokenizer.unk_token
        trainer = SFTTrainer(
            model=make_model(),
            args=args,
            train_dataset=data,
            processing_class=tokenizer,
            data_collator=collate,
            callbacks=[clock],
        )
        trainer.train()
    return clock


def run_loop(rows: list[dict[str, Any]], steps: int, trained_only: bool) -> Any:
    """Forward, backward, clipping and AdamW without a trainer; logits of all positions, or of the trained ones only."""
    import torch
    from torch.nn import functional

    model, clock = make_model().to("cuda" if torch.cuda.is_available() else "cpu"), Clock()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    model.train()
    for step in range(steps):
        clock.on_step_begin()
        batch = {name: value.to(model.device) for name, value in collate(rows[step * BATCH :][:BATCH]).items()}
        labels = batch.pop("labels")[:, 1:]
        if trained_only:
            hidden = model.model(**batch, use_cache=False).last_hidden_state[:, :-1]
            logits, targets = model.lm_head(hidden[labels != -100]), labels[labels != -100]
        else:
            logits, targets = model(**batch, use_cache=False).logits[:, :-1].flatten(0, 1), labels.flatten()
        loss = functional.cross_entropy(logits, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        clock.losses.append(loss.item())
        clock.on_step_end()
    return clock


def child(name: str, directory: Path, steps: int, plugins: list[str]) -> None:
    """Run one trainer and print its measurements as JSON."""
    rows = read_rows(directory / "rows.jsonl")[: steps * BATCH]
    runs = {
        "sftkit": lambda: run_sftkit(directory, steps, []),
        "sftkit with plugins": lambda: run_sftkit(directory, steps, plugins),
        "transformers": lambda: run_transformers(rows, steps),
        "trl": lambda: run_trl(rows, steps),
        "loop": lambda: run_loop(rows, steps, trained_only=False),
        "loop, trained only": lambda: run_loop(rows, steps, trained_only=True),
    }
    clock = runs[name]()
    import torch

    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_allocated()
    found = {"ms": 1e3 * median(clock.times[WARM_UP:]), "times": clock.times[WARM_UP:], "gb": memory / 1e9}
    print("RESULT " + json.dumps({**found, "losses": clock.losses[:steps]}))


def measure(name: str, path: Path, steps: int, plugins: list[str]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", name, "--rows", str(path), "--steps", str(steps)]
    command += [part for plugin in plugins for part in ("--plugin", plugin)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {name} ended with exit code {done.returncode}:\n{done.stderr[-3000:]}")
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))[7:])


def main() -> None:
    parser = add_flags(argparse.ArgumentParser(description=__doc__.splitlines()[0]))
    parser.add_argument("--plugin", action="append", default=[], help="measure sftkit with these plugins too")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        child(flags.child, flags.rows, flags.steps, flags.plugin)
        return
    names = ["sftkit", "transformers", "trl", "loop", "loop, trained only"]
    names += ["sftkit with plugins"] if flags.plugin else []
    steps, rounds = (10, 1) if flags.quick else (28, 3)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        write_rows(path, steps * BATCH + 64)
        for _ in range(rounds):
            for name in names:
                found[name].append(measure(name, path, steps, flags.plugin))
    show(found, flags)


def show(found: dict[str, list[dict[str, Any]]], flags: argparse.Namespace) -> None:
    results: dict[str, Any] = {}
    for name, runs in found.items():
        ms = 1e3 * median([seconds for run in runs for seconds in run["times"]])
        results[name] = {"ms": ms, "gb": max(run["gb"] for run in runs), "first_losses": runs[0]["losses"][:3]}
    for name in results:
        results[name]["sftkit is faster"] = round(results[name]["ms"] / results["sftkit"]["ms"], 2)
    rows = [
        [
            name,
            f"{row['ms']:.0f}",
            f"{row['sftkit is faster']:.2f}",
            f"{row['gb']:.2f}",
            f"{row['first_losses'][0]:.4f}",
        ]
        for name, row in results.items()
    ]
    title = f"A step of {BATCH} rows, median ({versions('sftkit-train', 'torch', 'transformers', 'trl')})"
    report(results, title, ("trainer", "ms", "times sftkit", "peak GB", "first loss"), rows, flags.json)
    if not flags.json:
        for name, target in TARGETS.items():
            ratio = results[name]["sftkit is faster"]
            print(f"target of {target} times {name}: {'met' if ratio >= target else 'missed'} ({ratio})")
        memory = results["sftkit"]["gb"]
        print(f"target of {MOST_MEMORY} GB at most: {'met' if memory <= MOST_MEMORY else 'missed'} ({memory:.2f})")


if __name__ == "__main__":
    main()
