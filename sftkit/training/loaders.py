"""Data loaders that `transformers.Trainer` does not build as sftkit needs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader, Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler

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


def in_the_order_of_epochs(sampler: Any, args: Any) -> Any:
    """A sampler whose order a resumed run repeats.

    The Trainer's `LengthGroupedSampler` takes its order from the global random state at the beginning of an epoch,
    which a run that is resumed within the epoch no longer has.

    Args:
        sampler: made by the Trainer.
        args: its training arguments, with the seed of the data.
    """
    if not isinstance(sampler, LengthGroupedSampler):
        return sampler
    return _OrderOfEpoch(sampler, args.data_seed if args.data_seed is not None else args.seed)


class _OrderOfEpoch(Sampler[int]):
    """A sampler in an order that depends on the seed and the epoch alone."""

    def __init__(self, sampler: LengthGroupedSampler, seed: int) -> None:
        self.sampler, self._seed, self._epoch = sampler, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader when an epoch begins."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator = torch.Generator().manual_seed(self._seed + self._epoch)
        return iter(self.sampler)
