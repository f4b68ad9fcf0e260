"""Data loaders that `transformers.Trainer` does not build as sftkit needs them."""

from __future__ import annotations

import functools
import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from torch.utils.data import DataLoader, Dataset, IterableDataset

from sftkit.data.stream import Stream
from sftkit.errors import ConfigError, Problem
from sftkit.training.batches import ROW
from sftkit.training.order import Grouped, RowOrder, Shuffled, token_lengths
from sftkit.training.sampler import Rebalanced, ReplicaBatches, Share, with_batches


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


def row_order(arguments: Any, rows: Any, step: int, training: bool) -> RowOrder:
    """The order in which rows are trained or evaluated.

    Args:
        arguments: `transformers.TrainingArguments`.
        rows: the rows.
        step: how many are computed in a step, by all processes.
        training: whether the order may be random.
    """
    strategy = str(arguments.train_sampling_strategy)
    if strategy == "group_by_length":
        return Grouped(token_lengths(rows), step, _seed(arguments))
    if strategy == "sequential" or not training:
        return RowOrder(len(rows))
    return Shuffled(len(rows), _seed(arguments))


def _seed(arguments: Any) -> int:
    """The seed of the order of the data."""
    return int(arguments.seed if arguments.data_seed is None else arguments.data_seed)


def shared_among_replicas(loader: DataLoader[Any], trainer: Any, rows: Any, prepare: Callable[[Any], Any]) -> Any:
    """The loader with the rows of this process, on its device.

    Args:
        loader: of all rows, as the Trainer makes it.
        trainer: the trainer.
        rows: those that it trains on, without their numbers; None for an evaluation, whose last rows are repeated until
            all processes have whole batches, and left out of its metrics.
        prepare: accelerate's own function, for a sampler or an iterable data set of the caller's own.

    Raises:
        ConfigError: if the batches are to be made in another way.
    """
    accelerator, arguments, engine = trainer.accelerator, trainer.args, trainer.engine
    placed = {"put_on_device": True, "dispatch_batches": False, "non_blocking": accelerator.non_blocking}
    order = loader.sampler
    if rows is None or not isinstance(order, RowOrder):
        if engine.sharing == 1 or isinstance(loader.dataset, IterableDataset):
            return prepare(loader)
        among = {"num_processes": engine.replicas, "process_index": engine.replica, "use_seedable_sampler": True}
        return prepare_data_loader(loader, accelerator.device, data_seed=_seed(arguments), **among, **placed)
    if engine.replicas > 1 and (problems := list(loader_problems(arguments.accelerator_config))):
        raise ConfigError(problems)
    share = Share(loader.batch_size or 1, engine.replicas, engine.replica, arguments.gradient_accumulation_steps)
    if str(arguments.train_sampling_strategy) == "batch_rebalance":
        batches: ReplicaBatches = Rebalanced(order, share, loader.drop_last, token_lengths(rows))
    else:
        batches = ReplicaBatches(order, share, loader.drop_last)
    made = with_batches(loader, batches)
    return prepare_data_loader(made, accelerator.device, num_processes=1, process_index=0, **placed)


def loader_problems(settings: Any) -> Iterator[Problem]:
    """Settings of accelerate's data loaders that have no effect, since sftkit shares the rows among processes.

    Args:
        settings: the ``accelerator_config`` of `transformers.TrainingArguments`.
    """
    defaults = {"split_batches": False, "dispatch_batches": False, "even_batches": True, "use_seedable_sampler": True}
    for name, default in defaults.items():
        if getattr(settings, name) not in (default, None):
            what = f"{name}: sftkit orders the rows, and shares them among the processes"
            yield Problem(what, "train.accelerator_config", "remove it", ("train", "accelerator_config"))


def after_first_batches(loader: Any, number: int) -> Any:
    """A loader without its first batches; one that starts at the row that was sought stays as it is."""
    seeks = isinstance(loader.dataset, Stream | NumberedStream) or isinstance(loader.batch_sampler, ReplicaBatches)
    return loader if seeks else skip_first_batches(loader, number)


def write_position(checkpoint: str, process: int, position: dict[str, Any]) -> None:
    """Write the position of a process in its stream into a checkpoint."""
    Path(checkpoint, f"stream_{process}.json").write_text(json.dumps(position), encoding="utf-8")


def read_position(checkpoint: str, process: int) -> dict[str, Any]:
    """The position of a process in its stream."""
    position: dict[str, Any] = json.loads(Path(checkpoint, f"stream_{process}.json").read_text(encoding="utf-8"))
    return position
