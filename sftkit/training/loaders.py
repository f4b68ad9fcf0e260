"""Data loaders that `transformers.Trainer` does not build as sftkit needs them."""

from __future__ import annotations

import functools
import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from sftkit.data.stream import SKIPPED, Stream
from sftkit.training.attributes import replaced


def stream_loader(stream: Stream, batch_size: int, collator: Any, pin_memory: bool, device: torch.device) -> Any:
    """A loader of a stream. Each process reads a share of it, so it is not divided among processes again."""
    collate = functools.partial(_unless_skipped, collator)
    loader = DataLoader(stream, batch_size=batch_size, collate_fn=collate, pin_memory=pin_memory)
    whole = {"num_processes": 1, "process_index": 0, "dispatch_batches": False}
    return prepare_data_loader(loader, device, put_on_device=True, **whole)


def _unless_skipped(collator: Any, rows: list[dict[str, Any]]) -> Any:
    """The batch, or an empty one if the loader skips it: a position is always in front of a whole batch."""
    return {} if rows[0] is SKIPPED else collator(rows)


def grouping_by_tokens(trainer: Any) -> AbstractContextManager[None]:
    """Samplers made inside group rows by their tokens, even if a processor's first input is pixels."""
    processor = trainer.processing_class
    return replaced(trainer, "processing_class", getattr(processor, "tokenizer", processor))


def write_position(checkpoint: str, process: int, position: dict[str, Any]) -> None:
    """Write the position of a process in its stream into a checkpoint."""
    Path(checkpoint, f"stream_{process}.json").write_text(json.dumps(position), encoding="utf-8")


def read_position(checkpoint: str, process: int) -> dict[str, Any]:
    """The position of a process in its stream."""
    position: dict[str, Any] = json.loads(Path(checkpoint, f"stream_{process}.json").read_text(encoding="utf-8"))
    return position
