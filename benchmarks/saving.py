"""What checkpoints cost: their share of a run, with and without the background, and verifying beside loading.

    python benchmarks/saving.py [--quick] [--json]

The same run is made twice; a step is a forward and a backward of a few short rows, and a checkpoint holds weights and
AdamW's state in float32. Verifying reads each byte of a checkpoint and compares its digest; loading is what a resume
does then: weights into the model, and the optimizer's state. Both read the page cache.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _report import median, parse_flags, report, versions

SIZES = {
    False: {"hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 8, "steps": 40, "each": 10},
    True: {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4, "steps": 9, "each": 3},
}


def run(directory: Path, size: dict[str, int], background: bool) -> tuple[dict[str, Any], dict[str, float]]:
    """A run's totals, and the medians of its saves in seconds."""
    from sftkit import Pipeline
    from sftkit.testing import tiny_model, tiny_tokenizer

    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": size["hidden_size"] // 8}
    options = {name: size[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers")}
    rows = [{"prompt": f"What is {n}?", "completion": f" {n} is {'one more ' * 8}"} for n in range(256)]
    train = {"max_steps": size["steps"], "save_strategy": "steps", "save_steps": size["each"], "logging_steps": 1}
    train |= {"output_dir": str(directory), "use_cpu": True, "per_device_train_batch_size": 8, "save_total_limit": 1}
    result = Pipeline(
        tiny_model(**options, **heads),
        rows,
        tokenizer=tiny_tokenizer(),
        train=train,
        config={"run": {"save_in_background": background}},
    ).run()
    manifest = json.loads((result.directory / "manifest.json").read_text(encoding="utf-8"))
    log = [json.loads(line) for line in (directory / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    waited = [entry["save_seconds"] for entry in log if "save_seconds" in entry]
    behind = [entry["save_background_seconds"] for entry in log if "save_background_seconds" in entry]
    return manifest["saving"], {"waited": median(waited), "behind": median(behind or [0])}


def seconds(function: Callable[[], Any], times: int = 3) -> float:
    """The median wall time of a call."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        function()
        taken.append(time.perf_counter() - began)
    return median(taken)


def load(checkpoint: Path) -> None:
    """What a resume reads."""
    import torch
    from safetensors.torch import load_file

    weights = load_file(checkpoint / "model.safetensors")
    model = {name: torch.empty_like(weight) for name, weight in weights.items()}
    for name, weight in weights.items():
        model[name].copy_(weight)
    torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)


def main() -> None:
    flags = parse_flags(__doc__.splitlines()[0])
    size = SIZES[flags.quick]
    with tempfile.TemporaryDirectory() as place:
        found = {}
        for name, background in (("foreground", False), ("background", True)):
            found[name] = run(Path(place, name), size, background)
        from sftkit.checkpoints import newest
        from sftkit.checkpoints.space import size_of

        checkpoint = Path(place, "foreground", f"checkpoint-{size['steps']}")
        assert newest(checkpoint.parent).path == checkpoint
        verify, loads = seconds(lambda: newest(checkpoint.parent)), seconds(lambda: load(checkpoint))
        gigabytes = size_of(checkpoint) / 1e9
    result = {name: {**totals, **each} for name, (totals, each) in found.items()}
    result |= {"gigabytes": round(gigabytes, 3), "verify_seconds": verify, "load_seconds": loads}
    rows = [
        [name, f"{totals['save_share']:.1%}", f"{each['waited']:.2f}", f"{each['behind']:.2f}"]
        for name, (totals, each) in found.items()
    ]
    stack = versions("sftkit-train", "transformers", "torch", "safetensors")
    title = f"Saving {gigabytes:.2f} GB every {size['each']} steps ({stack})"
    report(result, title, ("saving", "share of the run", "s waited per save", "s behind"), rows, flags.json)
    if not flags.json:
        print(f"verifying takes {verify:.2f} s, loading {loads:.2f} s")


if __name__ == "__main__":
    main()
