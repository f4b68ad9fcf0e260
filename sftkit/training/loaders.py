"""Data loaders that `transformers.Trainer` does not build as sftkit needs them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from sftkit.data.stream import Stream
from sftkit.training.attributes import replaced


def stream_loader(stream: Stream, batch_size: int, collator: Any, pin_memory: bool, device: torch.device) -> Any:
    """A loader of a stream. Each process reads a share of it, so it is not divided among processes again."""
    loader = DataLoader(stream, batch_size=batch_size, collate_fn=collator, pin_memory=pin_memory)
    whole = {"num_processes": 1, "process_index": 0, "dispatch_batches": False}
    return prepare_data_loader(loader, device, put_on_device=True, **whole)


def grouping_by_tokens(trainer: Any) -> AbstractContextManager[None]:
    """Samplers made inside group rows by their tokens, even if a processor's first input is pixels."""
    processor = trainer.processing_class
    return replaced(trainer, "processing_class", getattr(processor, "tokenizer", processor))
