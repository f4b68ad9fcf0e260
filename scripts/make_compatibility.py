"""Write docs/compatibility.md, which shows the techniques that work together; every pair is run.

    python scripts/make_compatibility.py

Each pair trains a tiny model for a few steps on the CPU, and evaluates it before and after. tests/e2e/test_compatibility.py
runs the same pairs and compares the results with the page.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "compatibility.md"

#: The techniques, by their names on the page, and the plugins of each.
TECHNIQUES: dict[str, list[str]] = {
    "peft": ["peft:r=4"],
    "loss: dft": ["loss:type=dft"],
    "flash_attn: varlen": ["flash_attn:implementation=varlen"],
    "flash_attn: sdpa_flash": ["flash_attn:implementation=sdpa_flash"],
    "flash_attn: flex": ["flash_attn:implementation=flex"],
    "flash_attn: flash_attention_2": ["flash_attn:implementation=flash_attention_2"],
    "flash_attn: flash_attention_3": ["flash_attn:implementation=flash_attention_3"],
    "liger": ["liger"],
    "unsloth": ["unsloth"],
    "bitsandbytes: 4 bit": ["bitsandbytes:bits=4", "peft:r=4"],
    "bitsandbytes: 8 bit": ["bitsandbytes:bits=8", "peft:r=4"],
    "gptq": ["gptq:group_size=32,rows=8"],
    "compile": ["compile:backend=aot_eager"],
    "optimizer: layer_decay": ["optimizer:layer_decay=0.9"],
    "muon": ["muon"],
    "schedule_free": ["schedule_free"],
    "freeze: spectrum": ["freeze:spectrum=0.5"],
    "lisa": ["lisa:layers=1,interval=1"],
    "rope_scaling: yarn": ["rope_scaling:factor=4"],
    "activations: full": ["activations:checkpointing=full"],
    "activations: selective": ["activations:checkpointing=selective"],
    "dedup": ["dedup:near=0.9"],
    "decontaminate": ["decontaminate"],
    "vision": ["vision"],
}
WITH: dict[str, list[str]] = {"alone": [], "packing": ["packing"], "neftune": ["neftune"], "peft": ["peft:r=4"]}
INTERPRETED = ("liger",)
YES, GPU = "yes", "on a GPU"

HEAD = """\
# Compatibility

Every cell is the result of a run: a tiny Llama is loaded from a directory, trained for a few steps on a CPU, and evaluated before and
after. `yes` means that the held-out loss fell or that more tokens were predicted correctly. `refused` means that the run ended before
weights were read, with the reason shown. `on a GPU` means that the technique needs a GPU and was not run. `vision` was run with a tiny
LLaVA on drawn images. Liger's kernels were run with Triton's interpreter. This page is written by `scripts/make_compatibility.py`, and
a test runs every cell again.

The pages of [fsdp](plugins/fsdp.md), [deepspeed](plugins/deepspeed.md) and [tensor_parallel](plugins/tensor_parallel.md) say what works with several processes.

"""


def run_pair(plugins: list[str], directory: Path) -> str:
    """The outcome of a run with these plugins: ``yes``, ``on a GPU`` or ``refused: REASON``."""
    from sftkit import Pipeline
    from sftkit.errors import SftkitError

    model, rows = vision_model(directory) if "vision" in plugins else text_model(directory)
    steps, batch = (2, 1) if "TRITON_INTERPRET" in os.environ else (5, 4)  # the interpreter is slow
    train: dict[str, Any] = {
        "max_steps": steps,
        "per_device_train_batch_size": batch,
        "learning_rate": 2e-2,
        "eval_on_start": True,
    }
    if "schedule_free" in plugins:
        train["lr_scheduler_type"] = "constant"
    output = tempfile.mkdtemp(dir=directory)
    try:
        result = Pipeline(
            model=str(model),
            config={"data": {"train": "rows", "max_length": 128}},
            data=rows,
            eval=rows[:1],
            plugins=[*plugins, "no:checks"],  # the held-out row is a training row
            train={**train, "use_cpu": True, "save_strategy": "no", "output_dir": f"{output}/run"},
        ).run()
    except SftkitError as error:
        if any(re.search(r"\bGPU\b", str(problem)) for problem in error.problems):
            return GPU
        return f"refused: {error.problems[0].what}"
    better = {"loss": -1, "token_accuracy": 1}  # the dft loss is small even before training
    gains = [
        sign * (result.metrics[f"eval_{name}"] - result.metrics[f"eval_{name}_before"]) for name, sign in better.items()
    ]
    return YES if max(gains) > 0 else f"no: {result.metrics}"


def text_model(directory: Path) -> tuple[Path, list[dict[str, Any]]]:
    """A tiny Llama and its training rows."""
    from sftkit.testing import tiny_model, tiny_tokenizer

    model = directory / "model"
    if not model.exists():
        sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "num_key_value_heads": 4}
        tiny_model("llama", **sizes).save_pretrained(model)
        tiny_tokenizer().save_pretrained(model)
    rows = [
        {"prompt": f"### Question: {number % 4}\n ### Answer:", "completion": " Paris is the capital of France."}
        for number in range(20)
    ]
    return model, rows


def vision_model(directory: Path) -> tuple[Path, list[dict[str, Any]]]:
    """A tiny LLaVA and its training rows."""
    sys.path.insert(0, str(ROOT / "tests" / "plugins" / "vision"))
    from vision_models import drawn_image, tiny_vision_model

    model = directory / "vision"
    if not model.exists():
        for part in tiny_vision_model("llava"):
            part.save_pretrained(model)
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    answer = [{"type": "text", "text": "It is a red square."}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return model, [{"images": [drawn_image("red")], "messages": messages}] * 20


def run_cell(technique: str, plugins: list[str], directory: Path) -> str:
    """Like `run_pair`, but runs Triton kernels in a separate process, which loads the interpreter before Triton."""
    if technique not in INTERPRETED:
        return run_pair(plugins, directory)
    variables = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT / "tests" / "plugins" / "liger")}
    command = [sys.executable, __file__, "--interpreted", str(directory), *plugins]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    return done.stdout.strip().splitlines()[-1] if done.returncode == 0 else f"no: {done.stderr[-2000:]}"


def cells(technique: str) -> dict[str, list[str] | None]:
    """The plugins of each cell in a row; None if the technique already includes the plugin of the column."""
    own = TECHNIQUES[technique]
    names = {plugin.partition(":")[0] for plugin in own}
    return {
        column: None if names & {plugin.partition(":")[0] for plugin in more} else [*own, *more]
        for column, more in WITH.items()
    }


def page(table: dict[str, dict[str, str]]) -> str:
    """The text of the page, from the outcome of each cell."""
    lines = [f"| | {' | '.join(WITH)} |", f"|{'---|' * (len(WITH) + 1)}"]
    lines += [f"| {name} | {' | '.join(row[column] for column in WITH)} |" for name, row in table.items()]
    return HEAD + "\n".join(lines) + "\n"


def read_page() -> dict[str, dict[str, str]]:
    """The outcome of each cell, read from the page."""
    rows = [
        [cell.strip() for cell in line.strip("|\n").split(" | ")]
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ") and not line.startswith("| |")
    ]
    return {row[0]: dict(zip(WITH, row[1:], strict=True)) for row in rows}


def main() -> None:
    logging.disable(logging.WARNING)
    if sys.argv[1:2] == ["--interpreted"]:
        importlib.import_module("interpreter")  # before anything imports triton
        print(run_pair(sys.argv[3:], Path(sys.argv[2])))
        return
    table: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as directory:
        for technique in TECHNIQUES:
            table[technique] = {}
            for column, plugins in cells(technique).items():
                outcome = "" if plugins is None else run_cell(technique, plugins, Path(directory))
                table[technique][column] = outcome
                print(f"{technique} with {column}: {outcome}", file=sys.stderr)
    PAGE.write_text(page(table), encoding="utf-8")


if __name__ == "__main__":
    main()
