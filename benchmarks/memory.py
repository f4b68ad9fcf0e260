"""Accuracy of the estimate of a run's memory.

    python benchmarks/memory.py [--quick] [--json]

Each setting is estimated in one process, as in `sftkit check`, and trained for three steps in another, whose peak is
measured: resident memory on a CPU, allocated memory on a GPU. On a CPU the allocator maps blocks from 1 MiB one by one
(MALLOC_MMAP_THRESHOLD_); without this, an old glibc fragments its heap, by an amount that differs from run to run.
--as-it-is measures that too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from _report import parse_flags, report, versions

TARGET_CPU, TARGET_GPU = 0.20, 0.15
VOCABULARY, ROWS = 32_000, 64
AS_IT_IS = "--as-it-is" in sys.argv


@dataclass(frozen=True)
class Setting:
    """A run to measure.

    Attributes:
        name: shown in the table.
        length: tokens of the longer half of the rows; the others are a little shorter, since rows differ in real data.
        architecture: a transformers model type.
        plugins: the selected plugins.
        train: fields of the section `train`.
        sizes: fields of the model's configuration, besides those of every setting.
    """

    name: str
    length: int = 512
    architecture: str = "llama"
    plugins: tuple[str, ...] = ()
    train: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=dict)


WIDE = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8}
SETTINGS = (
    Setting("llama"),
    Setting("llama, rows of 2,048", 2048),
    Setting("llama, lora", 1024, plugins=("peft",)),
    Setting("llama, checkpointed", 2048, train={"gradient_checkpointing": True}),
    Setting("llama, packed", 1024, plugins=("packing",)),
    Setting("gpt2", 512, "gpt2"),
    Setting("llama, accumulated", 1024, train={"gradient_accumulation_steps": 2}),
    Setting("llama, bf16", 1024, train={"bf16": True}),
    Setting("gemma2", 512, "gemma2"),
    Setting("llama of 42M, sgd", 512, sizes=WIDE, train={"optim": "sgd"}),
    Setting("llama of 42M, lora, selective", 512, plugins=("peft", "activations:checkpointing=selective"), sizes=WIDE),
    Setting("llama of 42M, full", 1024, plugins=("activations:checkpointing=full",), sizes=WIDE),
)
QUICK = ("llama", "gpt2", "llama, lora")


def model_config(setting: Setting) -> Any:
    """The configuration of a setting's model: 4 layers of width 128, unless the setting overrides it."""
    from transformers import AutoConfig

    sizes = {"vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4}
    sizes |= {"num_attention_heads": 4, "max_position_embeddings": 4096}
    sizes |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if setting.architecture == "gpt2":
        sizes = {"vocab_size": VOCABULARY, "n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 4096}
        sizes |= {"bos_token_id": 1, "eos_token_id": 2}
    else:
        sizes |= {"tie_word_embeddings": True} | setting.sizes
        sizes["num_key_value_heads"] = sizes["num_attention_heads"]
        sizes["head_dim"] = sizes["hidden_size"] // sizes["num_attention_heads"]
    return AutoConfig.for_model(setting.architecture, **sizes)


def make_run(setting: Setting, directory: Path) -> dict[str, Any]:
    """Write a model's configuration, a tokenizer and rows; return the configuration of the run."""
    import torch

    from sftkit.testing import tiny_tokenizer

    model_config(setting).save_pretrained(directory / "model")
    tiny_tokenizer().save_pretrained(directory / "model")
    half = setting.length // 2
    rows = [{"prompt": " a" * (half - shorter), "completion": " a" * half} for shorter in (0, half // 8)]  # tokens
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * (ROWS // 2)), "utf-8")
    train = {"per_device_train_batch_size": 8, "max_steps": 3, "save_strategy": "no", **setting.train}
    train["use_cpu"] = not torch.cuda.is_available()
    return {
        "model": {"name": str(directory / "model"), "init": "random"},
        "data": {"train": str(directory / "rows.jsonl"), "max_length": setting.length, "cache": False},
        "train": {**train, "output_dir": str(directory / "run")},
    }


def estimated(setting: Setting) -> dict[str, Any]:
    """The estimate of `sftkit check` for a setting."""
    from sftkit import Pipeline
    from sftkit.memory.run import estimate_run

    with tempfile.TemporaryDirectory() as directory:
        config = make_run(setting, Path(directory))
        return estimate_run(Pipeline(config=config, plugins=setting.plugins).prepare()).as_dict()


def measured(setting: Setting) -> dict[str, Any]:
    """The peak of a run of a setting, in bytes."""
    import torch

    from sftkit import Pipeline

    with tempfile.TemporaryDirectory() as directory:
        Pipeline(config=make_run(setting, Path(directory)), plugins=setting.plugins).run()
        if torch.cuda.is_available():
            return {"peak": torch.cuda.max_memory_allocated()}
    import resource

    scale = 1 if sys.platform == "darwin" else 1024  # the unit of ru_maxrss
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale}


def in_child(what: str, setting: Setting) -> dict[str, Any]:
    """The result of `estimated` or `measured` in a separate process."""
    done = subprocess.run(
        [sys.executable, __file__, what, json.dumps(asdict(setting))],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", **({} if AS_IT_IS else {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)})},
    )
    if done.returncode:
        sys.exit(f"error: {setting.name}: {what} ended with exit code {done.returncode}:\n{done.stderr[-4000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def compare(setting: Setting) -> dict[str, Any]:
    """The estimate and the peak of a setting, and their ratio."""
    estimate, peak = in_child("estimated", setting), in_child("measured", setting)["peak"]
    print(f"{setting.name}: {estimate['total'] / peak:.2f}", file=sys.stderr)
    return {**estimate, "setting": setting.name, "peak": peak, "ratio": round(estimate["total"] / peak, 3)}


def main() -> None:
    sys.argv[:] = [argument for argument in sys.argv if argument != "--as-it-is"]
    flags = parse_flags(__doc__.splitlines()[0])
    found = [compare(setting) for setting in SETTINGS if not flags.quick or setting.name in QUICK]
    device = found[0]["device"]
    target = TARGET_CPU if device == "cpu" else TARGET_GPU
    rows = [
        [each["setting"], f"{each['total'] / 1e9:.2f}", f"{each['peak'] / 1e9:.2f}", f"{each['ratio']:.2f}"]
        for each in found
    ]
    title = f"Peak memory on {device} ({versions('sftkit-train', 'transformers', 'torch')})"
    result = {"device": device, "target": target, "settings": found}
    report(result, title, ("setting", "estimated, GB", "measured, GB", "ratio"), rows, flags.json)
    if not flags.json:
        worst = max(abs(each["ratio"] - 1) for each in found)
        print(f"target, within {target:.0%}: {'met' if worst <= target else 'missed'} (worst {worst:.0%})")


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in ("estimated", "measured"):
        fields = json.loads(sys.argv[2])
        setting = Setting(**{**fields, "plugins": tuple(fields["plugins"])})
        print("\n" + json.dumps((estimated if sys.argv[1] == "estimated" else measured)(setting)))
    else:
        main()
