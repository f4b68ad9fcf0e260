"""A child process of the GPU benchmark: one setting, whose figures it prints as the last line.

    python _gpu_child.py run SPEC.json | head SPEC.json | device

`run` works in an environment without sftkit too, for peers that need another.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRITON_PRINT_AUTOTUNING"] = "0"

from _gpu_cases import Spec

#: The same for every Trainer. Logging each step costs all of them the same, and tells the losses.
TRAIN: dict[str, Any] = {
    "learning_rate": 1e-4,
    "lr_scheduler_type": "constant",
    "optim": "adamw_torch_fused",
    "train_sampling_strategy": "sequential",
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "seed": 0,
    "disable_tqdm": True,
}
LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "bias": "none"}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def train_arguments(spec: Spec) -> dict[str, Any]:
    own = {"per_device_train_batch_size": spec.batch, "max_steps": spec.steps + spec.warmup}
    return {**TRAIN, **own, "use_cpu": spec.device == "cpu", "output_dir": f"{spec.directory}/run"}


def run_sftkit(spec: Spec, watch: Any) -> None:
    from _gpu_model import config_of, model_of, rows_of, tokenizer_of

    from sftkit import Pipeline, Plugin, hookimpl
    from sftkit.plugin.base import dataclass

    @dataclass(frozen=True, kw_only=True)
    class OnDevice(Plugin):
        """Makes the model on the device, without a copy on disk or in main memory."""

        @hookimpl
        def load_model(self, options: Any) -> Any:
            return model_of(spec.shape, spec.device, **options)

    plugins: list[Any] = [OnDevice(), *(["packing"] if spec.packed else []), *spec.plugins]
    if spec.train == "lora":
        plugins.append(f"peft:r={LORA['r']},alpha={LORA['lora_alpha']},dropout=0,target_modules={json.dumps(LINEAR)}")
    directory, vocabulary = f"{spec.directory}/model", spec.shape["vocab_size"]
    config_of(spec.shape).save_pretrained(directory)
    dtype = "bfloat16" if spec.device == "cuda" else "float32"
    Pipeline(
        model={"name": directory, "init": "random", "dtype": dtype},
        data=rows_of(spec.rows, vocabulary),
        tokenizer=tokenizer_of(vocabulary),
        config={"data": {"max_length": spec.max_length, "cache": False}},
        # Adapters are in float32, and compute in bfloat16 only inside autocast; weights in bfloat16 need none.
        train={**train_arguments(spec), "bf16": spec.device == "cuda" and spec.train == "lora"},
        plugins=plugins,
        callbacks=[watch],
        overwrite=True,
    ).run()


def run_trl(spec: Spec, watch: Any) -> None:
    from _gpu_model import model_of, rows_of, tokenizer_of
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    vocabulary = spec.shape["vocab_size"]
    own: dict[str, Any] = {"max_length": spec.max_length, "packing": spec.packed, **spec.options}
    if spec.device == "cpu":
        own["bf16"] = False
    adapters = {}
    if spec.train == "lora":
        from peft import LoraConfig

        adapters = {"peft_config": LoraConfig(task_type="CAUSAL_LM", target_modules=LINEAR, **LORA)}
    SFTTrainer(
        model=model_of(spec.shape, spec.device, **({"attn_implementation": spec.attention} if spec.attention else {})),
        args=SFTConfig(**train_arguments(spec), **own),
        train_dataset=Dataset.from_list(rows_of(spec.rows, vocabulary)),
        processing_class=tokenizer_of(vocabulary),
        callbacks=[watch],
        **adapters,
    ).train()


def run_unsloth(spec: Spec, watch: Any) -> None:
    from _gpu_model import rows_of, saved
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer
    from unsloth import FastLanguageModel  # before transformers and trl, which it changes

    full = spec.train == "full"
    model, tokenizer = FastLanguageModel.from_pretrained(
        model_name=saved(spec.shape, f"{spec.directory}/weights", spec.device),
        max_seq_length=spec.max_length,
        load_in_4bit=False,
        full_finetuning=full,
    )
    if not full:
        own = {"target_modules": LINEAR, "use_gradient_checkpointing": "unsloth", "random_state": 0}
        model = FastLanguageModel.get_peft_model(model, **LORA, **own)
    SFTTrainer(
        model=model,
        args=SFTConfig(**train_arguments(spec), max_length=spec.max_length, packing=spec.packed),
        train_dataset=Dataset.from_list(rows_of(spec.rows, spec.shape["vocab_size"])),
        processing_class=tokenizer,
        callbacks=[watch],
    ).train()


def run_loop(spec: Spec, watch: Any) -> None:
    """Bare torch: every position's logits, mean over the batch's trained tokens, AdamW."""
    import torch
    from _gpu_model import EOS, PAD, model_of, rows_of, tokenizer_of

    tokenizer = tokenizer_of(spec.shape["vocab_size"])
    rows = []
    for row in rows_of(spec.rows, spec.shape["vocab_size"]):
        prompt, completion = (tokenizer(row[part])["input_ids"] for part in ("prompt", "completion"))
        ids = [*prompt, *completion, EOS][: spec.max_length]
        rows.append({"input_ids": ids, "labels": [*[-100] * len(prompt), *ids[len(prompt) :]][: spec.max_length]})
    watch.rows = rows
    model = model_of(spec.shape, spec.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=TRAIN["learning_rate"], weight_decay=0.0, fused=True)
    for step in range(spec.warmup + spec.steps):
        some = rows[step * spec.batch : (step + 1) * spec.batch]
        width = max(len(row["input_ids"]) for row in some)
        fills = {"input_ids": PAD, "labels": -100}
        ids, labels = (
            torch.tensor([row[name] + [fill] * (width - len(row[name])) for row in some], device=spec.device)
            for name, fill in fills.items()
        )
        sizes = torch.tensor([len(row["input_ids"]) for row in some], device=spec.device)
        mask = (torch.arange(width, device=spec.device) < sizes[:, None]).long()
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        watch.losses.append(loss.item())
        watch.step()


KINDS = {"sftkit": run_sftkit, "trl": run_trl, "unsloth": run_unsloth, "loop": run_loop}


def run(spec: Spec) -> dict[str, Any]:
    """The figures of one setting."""
    started = time.perf_counter()
    if spec.kind == "unsloth":
        import unsloth  # noqa: F401 (before transformers, which the watch imports)
    from _gpu_watch import EnoughError, Watch

    watch = Watch(spec.warmup, spec.steps, spec.device)
    with contextlib.suppress(EnoughError):
        KINDS[spec.kind](spec, watch)
    return {**figures(spec, watch), "child_s": round(time.perf_counter() - started, 1)}


def figures(spec: Spec, watch: Any) -> dict[str, Any]:
    from statistics import median

    from _gpu_flops import peak_flops, step_flops

    steps = range(spec.warmup, spec.warmup + spec.steps)
    if len(watch.seconds) != spec.steps or len(watch.rows) < spec.batch * (spec.warmup + spec.steps):
        raise RuntimeError(f"{len(watch.seconds)} steps on {len(watch.rows)} rows, not {spec.steps} as planned")
    counts = [[count(watch.rows[at]) for at in range(step * spec.batch, (step + 1) * spec.batch)] for step in steps]
    tokens, trained, squares = (sum(row[at] for rows in counts for row in rows) for at in range(3))
    shape = spec.shape
    adapters = 0
    if spec.train == "lora":
        adapters = LORA["r"] * adapter_widths(shape)
    flops = step_flops(shape, spec.train, tokens, trained, squares, adapters)
    peak, source = peak_flops(spec.device, spec.peak_tflops)
    total = sum(watch.seconds)
    return {
        "tokens_per_second": round(tokens / total, 1),
        "trained_tokens_per_second": round(trained / total, 1),
        "step_ms": round(median(watch.seconds) * 1e3, 2),
        "peak_gib": round(watch.peak_gib, 2),
        "mfu": round(flops / total / peak, 4),
        "tflops": round(flops / total / 1e12, 3),
        "peak_tflops": round(peak / 1e12, 2),
        "peak_source": source,
        "tokens": tokens,
        "trained_tokens": trained,
        "steps": spec.steps,
        "losses": [round(loss, 6) for loss in watch.losses],
    }


def count(row: Any) -> tuple[int, int, int]:
    """Tokens, trained tokens, and the sum of the squared lengths of the documents of a row."""
    import numpy as np

    labels = np.asarray(row["labels"])
    size = len(row["input_ids"])
    if "seq_lengths" in row:
        lengths = np.asarray(row["seq_lengths"])
    elif "position_ids" in row:
        lengths = np.diff(np.append(np.flatnonzero(np.asarray(row["position_ids"]) == 0), size))
    else:
        lengths = np.array([size])
    firsts = np.cumsum(lengths) - lengths  # have nothing before them, whatever their label
    trained = int((labels != -100).sum() - (labels[firsts] != -100).sum())
    return size, trained, int((lengths.astype(np.int64) ** 2).sum())


def adapter_widths(shape: dict[str, Any]) -> int:
    """Inputs and outputs of all linear layers together: what an adapter's weights are, divided by its rank."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]
    queries = shape["num_attention_heads"] * shape["head_dim"]
    keys = shape["num_key_value_heads"] * shape["head_dim"]
    layer = 2 * (hidden + queries) + 2 * (hidden + keys) + 3 * (hidden + inner)
    return int(shape["num_hidden_layers"] * layer)


def device() -> dict[str, Any]:
    """What there is to measure on."""
    import torch

    if not torch.cuda.is_available():
        return {"name": "CPU", "gib": 0.0, "cuda": False, "torch": torch.__version__}
    memory = torch.cuda.get_device_properties(0).total_memory / 2**30
    name = torch.cuda.get_device_name()
    return {"name": name, "gib": round(memory, 1), "cuda": True, "torch": torch.__version__}


def main(what: str, *paths: str) -> None:
    try:
        if what == "device":
            told = device()
        else:
            values = json.loads(Path(paths[0]).read_text(encoding="utf-8"))
            if what == "head":
                from _gpu_head import measure

                told = measure(**values)
            else:
                told = run(Spec(**values))
    except BaseException as error:  # whatever ends a setting is told in the table
        traceback.print_exc()
        memory = type(error).__name__ == "OutOfMemoryError" or "out of memory" in str(error).lower()
        first = " ".join(str(error).split())[:300]
        told = {"error": "out of memory" if memory else f"{type(error).__name__}: {first}"}
    print(f"\n{json.dumps(told)}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
