"""One trainer and its steps, measured in a process of its own: sftkit, transformers' Trainer, TRL, and plain loops."""

from __future__ import annotations

import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _data import SHARED, code_alpaca
from _report import median

MAX_LENGTH, WARM_UP = 512, 3
CPU_TIME = "SFTKIT_BENCH_CPU_TIME"  # a variable of the environment: measure CPU time


@dataclass(frozen=True)
class Shape:
    """What is trained.

    Attributes:
        vocabulary: tokens of the model; the data has those of the Llama 2 tokenizer.
        batch: rows of a batch.
        packed: whether the documents are packed.
    """

    vocabulary: int = 32_000
    batch: int = 8
    packed: bool = False


SHAPES = {
    "completions": Shape(),
    "packed": Shape(batch=4, packed=True),
    "large vocabulary": Shape(vocabulary=151_936),
    "large vocabulary, packed": Shape(vocabulary=151_936, batch=4, packed=True),
}


def write_rows(directory: Path, shape: Shape, steps: int) -> None:
    """Write questions and answers in a random order, and the rows that sftkit makes of them, for the other trainers."""
    import random

    pairs = code_alpaca()
    random.Random(0).shuffle(pairs)
    pairs = pairs[: (steps * shape.batch + 64) * (8 if shape.packed else 1)]
    lines = [json.dumps({"prompt": question, "completion": answer}) for question, answer in pairs]
    Path(directory, "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    made = pipeline(directory, shape, "unused", 1, []).prepare().data.train
    names = ("input_ids", "labels", *(("position_ids",) if shape.packed else ()))
    rows = [{name: [int(value) for value in row[name]] for name in names} for row in made]
    Path(directory, "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def pipeline(
    directory: Path, shape: Shape, output: str, steps: int, plugins: list[str], callbacks: Sequence[Any] = ()
) -> Any:
    from transformers import AutoTokenizer

    from sftkit.run.pipeline import Pipeline

    return Pipeline(
        model=make_model(shape),
        config={"data": {"train": str(directory / "pairs.jsonl"), "max_length": MAX_LENGTH}},
        tokenizer=AutoTokenizer.from_pretrained(SHARED / "llama2_tokenizer"),
        plugins=[*(["packing"] if shape.packed else []), *plugins],
        train=arguments(str(directory / output), shape, steps),
        callbacks=callbacks,
        overwrite=True,
    )


def make_model(shape: Shape) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 344}
    return LlamaForCausalLM(LlamaConfig(vocab_size=shape.vocabulary, tie_word_embeddings=True, **sizes))


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Pad rows on the right to the longest; the padding of packed rows is one more document."""
    import torch

    width = max(len(row["input_ids"]) for row in rows)
    last = "position_ids" if "position_ids" in rows[0] else "attention_mask"
    batch = {name: torch.full((len(rows), width), fill) for name, fill in (("input_ids", 0), ("labels", -100))}
    batch[last] = torch.zeros(len(rows), width, dtype=torch.long)
    for at, row in enumerate(rows):
        length = len(row["input_ids"])
        for name in ("input_ids", "labels"):
            batch[name][at, :length] = torch.tensor(row[name])
        if last == "position_ids":
            batch[last][at] = torch.tensor([*row[last], *range(width - length)])
        else:
            batch[last][at, :length] = 1
    return batch


def arguments(directory: str, shape: Shape, steps: int) -> dict[str, Any]:
    return {
        "output_dir": directory,
        "max_steps": steps,
        "per_device_train_batch_size": shape.batch,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


class Clock:
    """A callback of the Trainer that measures the time of each step, from the end of the one before."""

    def __new__(cls) -> Any:
        from transformers import TrainerCallback

        class Callback(TrainerCallback):
            def __init__(self) -> None:
                self.times: list[float] = []
                self.losses: list[float] = []

            def on_step_begin(self, *_: Any, **__: Any) -> None:
                self.since = now()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                self.times.append(now() - self.since)

            def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
                if "loss" in logs:
                    self.losses.append(logs["loss"])

        return Callback()


def now() -> float:
    """The time, once the device has finished."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.process_time() if os.environ.get(CPU_TIME) else time.perf_counter()


def run_sftkit(directory: Path, shape: Shape, steps: int, plugins: list[str]) -> Any:
    clock = Clock()
    pipeline(directory, shape, "run", steps, plugins, [clock]).run()
    return clock


def run_transformers(rows: list[dict[str, Any]], shape: Shape, steps: int) -> Any:
    from transformers import Trainer, TrainingArguments

    clock = Clock()
    with tempfile.TemporaryDirectory() as directory:
        args = TrainingArguments(**arguments(directory, shape, steps), remove_unused_columns=False)
        model = make_model(shape)
        model.config.use_cache = False  # with a cache, packed documents would see each other
        Trainer(model=model, args=args, train_dataset=rows, data_collator=collate, callbacks=[clock]).train()
    return clock


def run_trl(rows: list[dict[str, Any]], shape: Shape, steps: int) -> Any:
    """TRL with its chunked loss, which is the default (``nll``)."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    clock = Clock()
    with tempfile.TemporaryDirectory() as directory:
        extra = {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": MAX_LENGTH, "bf16": False}
        extra |= {"loss_type": "nll", "gradient_checkpointing": False}
        args = SFTConfig(**arguments(directory, shape, steps), **extra, remove_unused_columns=False)
        tokenizer = AutoTokenizer.from_pretrained(SHARED / "llama2_tokenizer")
        tokenizer.pad_token = tokenizer.unk_token
        trainer = SFTTrainer(
            model=make_model(shape),
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            data_collator=collate,
            callbacks=[clock],
        )
        trainer.train()
    return clock


def run_loop(rows: list[dict[str, Any]], shape: Shape, steps: int, trained_only: bool, padding: bool = True) -> Any:
    """Forward, backward, clipping and AdamW without a trainer; logits of all positions, or of the trained ones only."""
    import torch
    from torch.nn import functional

    model, clock = make_model(shape).to("cuda" if torch.cuda.is_available() else "cpu"), Clock()
    lengths: list[int] = []
    if not padding:
        model.set_attn_implementation(_document_attention(lengths))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
    model.train()
    for step in range(steps):
        clock.on_step_begin()
        some = rows[step * shape.batch :][: shape.batch]
        batch = collate(some) if padding else _joined(some, lengths)
        batch = {name: value.to(model.device) for name, value in batch.items()}
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


def _joined(rows: list[dict[str, Any]], lengths: list[int]) -> dict[str, Any]:
    """The rows in one, without padding; the lengths of its documents replace the list's items."""
    import torch

    parts: dict[str, list[int]] = {"input_ids": [], "labels": [], "position_ids": []}
    for row in rows:
        parts["input_ids"] += row["input_ids"]
        parts["labels"] += [-100, *row["labels"][1:]]
        parts["position_ids"] += row.get("position_ids") or range(len(row["input_ids"]))
    starts = [place for place, position in enumerate(parts["position_ids"]) if position == 0]
    lengths[:] = [end - start for start, end in zip(starts, [*starts[1:], len(parts["position_ids"])], strict=True)]
    return {name: torch.tensor([values]) for name, values in parts.items()}


def _document_attention(lengths: list[int]) -> str:
    """Register causal attention within documents of these lengths, and return its name."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention
    from transformers import AttentionInterface, AttentionMaskInterface

    def attention(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> tuple[Any, None]:
        parts = zip(*(tensor.split(lengths, dim=2) for tensor in (query, key, value)), strict=True)
        made = [scaled_dot_product_attention(*part, is_causal=True).transpose(1, 2) for part in parts]
        return torch.cat(made, dim=1), None

    AttentionInterface.register("documents", attention)
    AttentionMaskInterface.register("documents", lambda *_, **__: None)
    return "documents"


TRAINERS = ("sftkit", "sftkit, padded", "transformers", "trl", "loop", "loop, trained only", "loop, without padding")
LIMIT = TRAINERS[-1]


def child(name: str, directory: Path, shape: Shape, steps: int, plugins: list[str]) -> None:
    """Run one trainer and print its measurements as JSON."""
    rows = [json.loads(line) for line in (directory / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = rows[: steps * shape.batch]
    runs: dict[str, Callable[[], Any]] = {
        "sftkit": lambda: run_sftkit(directory, shape, steps, []),
        "sftkit, padded": lambda: run_sftkit(directory, shape, steps, ["no:flash_attn"]),
        "sftkit with plugins": lambda: run_sftkit(directory, shape, steps, plugins),
        "transformers": lambda: run_transformers(rows, shape, steps),
        "trl": lambda: run_trl(rows, shape, steps),
        "loop": lambda: run_loop(rows, shape, steps, trained_only=False),
        "loop, trained only": lambda: run_loop(rows, shape, steps, trained_only=True),
        LIMIT: lambda: run_loop(rows, shape, steps, trained_only=True, padding=False),
    }
    clock = runs[name]()
    import torch

    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if torch.cuda.is_available():
        memory = torch.cuda.max_memory_allocated()
    found = {"ms": 1e3 * median(clock.times[WARM_UP:]), "times": clock.times[WARM_UP:], "gb": memory / 1e9}
    print("RESULT " + json.dumps({**found, "losses": clock.losses[:steps]}))
