"""Data loaders that `transformers.Trainer` does not build as sftkit needs them."""

from __future__ import annotations

import functools
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler
from transformers.trainer_pt_utils import LengthGroupedSampler

from sftkit.data.stream import Stream
from sftkit.training.attributes import replaced
from sftkit.training.batches import ROW
from sftkit.training.engine import Engine


class RowSources(NamedTuple):
    """Where the tokens of prepared rows come from.

    Attributes:
        rows: the rows.
        names: the names of the sources.
        column: rows with the number of the source of each token, as ``sources``; None for a stream, which has them.
    """

    rows: Any
    names: list[str]
    column: Any = None


@dataclass(frozen=True)
class NumberedRows(Dataset):
    """Prepared rows with their numbers, from 1, as ``sftkit preview --row`` counts them.

    Attributes:
        rows: the rows.
        sources: rows of the column ``sources``, which is added to them; or None.
        numbered: whether they have their numbers.
    """

    rows: Any
    sources: Any = None
    numbered: bool = True

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        fetch = getattr(self.rows, "__getitems__", None)
        rows = fetch(indices) if fetch else [self.rows[index] for index in indices]
        sources = [{}] * len(rows) if self.sources is None else self.sources.__getitems__(indices)
        numbers = [{ROW: int(index) + 1} if self.numbered else {} for index in indices]
        return [{**row, **source, **number} for row, source, number in zip(rows, sources, numbers, strict=True)]


@dataclass(frozen=True)
class NumberedStream(IterableDataset):
    """The rows of a stream with their numbers, from 1."""

    rows: Stream

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for number, row in enumerate(self.rows.with_sources(), start=self.rows.start + 1):
            yield {**row, ROW: number}


def outlasting_signals(loader: Any) -> Any:
    """The loader, whose workers outlast the first signal, so that the main process can finish its step.

    Slurm and terminals send signals to all processes of a run. Changes the loader.
    """
    inner = getattr(loader, "base_dataloader", loader)
    inner.worker_init_fn = functools.partial(_begin_worker, inner.worker_init_fn)
    return loader


def _begin_worker(begin: Callable[[int], None] | None, worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _ignore_once)  # the loader ends a worker that hangs by SIGTERM
    if begin is not None:
        begin(worker)


def _ignore_once(number: int, frame: Any) -> None:
    signal.signal(number, signal.SIG_DFL)


def without_numbers(dataset: Any) -> Any:
    """The rows of `NumberedRows`; any other data set as it is."""
    return dataset.rows if isinstance(dataset, NumberedRows) else dataset


def stream_loader(stream: Any, batch_size: int, collator: Any, pin_memory: bool, device: torch.device) -> Any:
    """A loader of a stream. Each process reads a share of it, so it is not divided among processes again."""
    loader = DataLoader(stream, batch_size=batch_size, collate_fn=collator, pin_memory=pin_memory)
    whole = {"num_processes": 1, "process_index": 0, "dispatch_batches": False}
    return prepare_data_loader(loader, device, put_on_device=True, **whole)


def sharing_among_groups(accelerator: Any, engine: Engine) -> AbstractContextManager[None]:
    """Inside, loaders that the accelerator prepares give all processes of a group the same rows."""
    if engine.sharing == 1:
        return nullcontext()
    settings = accelerator.dataloader_config
    share = {"num_processes": engine.replicas, "process_index": engine.replica}
    share |= {"use_seedable_sampler": settings.use_seedable_sampler, "data_seed": settings.data_seed}
    prepare = functools.partial(prepare_data_loader, put_on_device=True, dispatch_batches=False, **share)
    return replaced(accelerator, "prepare_data_loader", lambda loader, **_: prepare(loader, accelerator.device))


def after_first_batches(loader: Any, number: int) -> Any:
    """A loader without its first batches; that of a stream, which starts at the row that was sought, stays as it is."""
    dataset = loader.dataset
    is_stream = isinstance(dataset, Stream | NumberedStream)
    return loader if is_stream else skip_first_batches(loader, number)


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


def write_position(checkpoint: str, process: int, position: dict[str, Any]) -> None:
    """Write the position of a process in its stream into a checkpoint."""
    Path(checkpoint, f"stream_{process}.json").write_text(json.dumps(position), encoding="utf-8")


def read_position(checkpoint: str, process: int) -> dict[str, Any]:
    """The position of a process in its stream."""
    position: dict[str, Any] = json.loads(Path(checkpoint, f"stream_{process}.json").read_text(encoding="utf-8"))
    return position
