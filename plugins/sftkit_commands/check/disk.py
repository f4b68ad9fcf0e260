"""What a run takes on disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sftkit.api import auto_class, model_config
from sftkit_commands.check.verdict import Verdict

if TYPE_CHECKING:
    from sftkit.api import PreparedRun

OPTIMIZER = 8  # bytes a trained parameter: AdamW's two moments in float32
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 4}


def disk_verdicts(prepared: PreparedRun) -> Iterator[Verdict]:
    """Whether checkpoints and the model fit on the disk."""
    parameters = _parameters(prepared)
    place = Path(prepared.config.train["output_dir"]).absolute()
    free = shutil.disk_usage(next(part for part in (place, *place.parents) if part.exists())).free
    if parameters is None:
        told = f"{free / 1e9:.1f} GB are free; what a checkpoint takes cannot be told before the model is loaded"
        yield Verdict("disk", "ok", told)
        return
    weights = parameters * BYTES[prepared.config.model.dtype]
    checkpoint = weights + parameters * OPTIMIZER
    kept = int(prepared.config.train.get("save_total_limit") or 2) + 1  # one more while the next is written
    saves = str(prepared.config.train.get("save_strategy", "steps")) != "no"
    needed = weights + (checkpoint * kept if saves else 0)
    told = f"up to {needed / 1e9:.2f} GB ({checkpoint / 1e9:.2f} GB a checkpoint, {kept} at once); "
    told += f"{free / 1e9:.1f} GB are free"
    fix = "free some, give another --output, or lower train.save_total_limit"
    yield Verdict("disk", "wrong" if needed > free else "ok", told, fix if needed > free else "")


def _parameters(prepared: PreparedRun) -> int | None:
    """Parameters of the model when all of them are trained; None with adapters, or where it cannot be known."""
    config = model_config(prepared.config.model.name, prepared.config.model.trust_remote_code)
    if config is None or prepared.plugins.fillers("adapt_model"):
        return None
    import torch

    with torch.device("meta"):
        model = auto_class(prepared).from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())
