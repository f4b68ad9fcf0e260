"""Where rows come from: files, the hub, and loaded objects."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.config.train_fields import train_value
from sftkit.data.files import Read, find_files, locate, open_files, read_files
from sftkit.data.hub import read_hub
from sftkit.data.media import detach_images, holds_files
from sftkit.data.mixes import hold_out, mix
from sftkit.errors import DataError, Problem

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, IterableDataset

    from sftkit.config import RunConfig


@dataclass(frozen=True)
class DataSource:
    """Rows that are read on demand.

    Attributes:
        where: the configuration key that names the source.
        identity: identifies the data without reading it; can be stored as JSON.
        load: reads the rows.
        files: the files that the rows come from, if any.
        pick: chooses rows, given the number of rows; None uses all.
    """

    where: str
    identity: Any
    load: Callable[[], Read]
    files: tuple[Path, ...] = ()
    pick: Callable[[int], np.ndarray] | None = None

    def place(self, row: int) -> str:
        """Where a row is, for error messages: file and line if it comes from a file."""
        if not self.files:
            return f"{self.where}, row {row + 1}"
        return f"{self.where}, {locate(self.files, row, self.load().copies)}"


@dataclass(frozen=True)
class StreamSource:
    """Rows that are read one after the other.

    Attributes:
        where: the configuration key that names the source.
        identity: identifies the data; can be stored as JSON.
        load: starts reading.
        shuffle_buffer: size of the shuffle buffer in rows; 0 keeps the order.
    """

    where: str
    identity: Any
    load: Callable[[], IterableDataset]
    shuffle_buffer: int = 0


def load_sources(config: RunConfig, train: Any = None, evaluation: Any = None) -> dict[str, list[DataSource]]:
    """The sources of each split: ``train`` and the evaluation sets by name. A mixture has several sources.

    Args:
        config: the run as resolved.
        train: a loaded object in place of ``data.train``: a Dataset, a DatasetDict, or a list of rows.
        evaluation: the same in place of ``data.eval``, or a dict of several by name.

    Raises:
        DataError: if a file does not exist or its type is not supported.
    """
    data, seed = config.data, int(train_value(config, "seed"))
    if train is not None:
        sources = [_loaded(train, data.split, "data.train")]
    elif data.mix:
        weighted = [(_named(name, config, "data.mix"), weight) for name, weight in data.mix.items()]
        sources = mix(weighted, data.mix_until, seed)
    else:
        sources = [_named(data.train or [], config, "data.train")]
    if evaluation is None and isinstance(data.eval, float):
        sources, held_out = hold_out(sources, data.eval, seed)
        return {"train": sources, "eval": held_out}
    if evaluation is not None:
        sets = {name: _loaded(value, "train", where) for name, where, value in _eval_sets(evaluation)}
    else:
        sets = {name: _named(value, config, where) for name, where, value in _eval_sets(data.eval)}
    return {"train": sources, **{name: [source] for name, source in sets.items()}}


def _eval_sets(evaluation: Any) -> Iterable[tuple[str, str, Any]]:
    """Name, configuration key and value of each evaluation set."""
    from datasets import DatasetDict

    if evaluation is None:
        return ()
    if not isinstance(evaluation, dict) or isinstance(evaluation, DatasetDict):
        return [("eval", "data.eval", evaluation)]
    if "train" in evaluation:
        what = "an evaluation set is named train, like the training data"
        raise DataError(Problem(what, "data.eval.train", "rename it"))
    return [(name, f"data.eval.{name}", value) for name, value in evaluation.items()]


def load_streams(config: RunConfig, train: Any = None) -> list[tuple[StreamSource, float]]:
    """The sources of the training stream, with their weights.

    Args:
        config: the run as resolved.
        train: a loaded IterableDataset in place of ``data.train``.

    Raises:
        DataError: if a file does not exist or its type is not supported.
    """
    data = config.data
    if train is not None:
        identity = {"stream": str(getattr(train, "_fingerprint", None) or train.info)}
        return [(StreamSource("data.train", identity, lambda: train, data.shuffle_buffer), 1.0)]
    if data.mix:
        return [(_streamed(name, config, "data.mix"), weight) for name, weight in data.mix.items()]
    return [(_streamed(data.train or [], config, "data.train"), 1.0)]


def _streamed(names: str | list[str], config: RunConfig, where: str) -> StreamSource:
    listed = [names] if isinstance(names, str) else list(names)
    files = [path for name in listed for path in find_files(name, where) or ()]
    load = functools.partial(open_files, files, streaming=True)
    identity: Any = {"files": _stats(files)}
    if not files:
        load = functools.partial(read_hub, listed[0], config.data, where, streaming=True)
        identity = {"hub": [*listed, config.data.subset, config.data.split]}
    return StreamSource(where, identity, load, config.data.shuffle_buffer)


def _stats(files: Iterable[Path]) -> list[Any]:
    return [(str(path.resolve()), (s := path.stat()).st_size, s.st_mtime_ns, s.st_ctime_ns) for path in files]


def _named(names: str | list[str], config: RunConfig, where: str) -> DataSource:
    listed = [names] if isinstance(names, str) else list(names)
    found = {name: find_files(name, where) for name in listed}
    files = tuple(path for paths in found.values() for path in paths or ())
    if files and (others := [name for name, paths in found.items() if paths is None]):
        what = f"{others[0]!r} is not a file, but other names in the list are"
        raise DataError(Problem(what, where, "correct the path, or use data.mix"))
    if not files and len(listed) > 1:
        raise DataError(Problem("a list can only name files", where, "name one hub data set, or use data.mix"))

    @functools.cache
    def load() -> Read:
        return read_files(files, config.data, where) if files else Read(read_hub(listed[0], config.data, where))

    if files:
        return DataSource(where, {"files": _stats(files), "on_bad_row": config.data.on_bad_row}, load, files)
    return DataSource(where, {"fingerprint": load().rows._fingerprint}, load)


def _loaded(value: Any, split: str, where: str) -> DataSource:
    rows = as_rows(value, split, where)
    return DataSource(where, {"fingerprint": rows._fingerprint}, lambda: Read(rows))


def as_rows(value: Any, split: str, where: str) -> Dataset:
    """A loaded object as a Dataset.

    Raises:
        DataError: if it is not a Dataset, a DatasetDict with the split, or a list of dicts.
    """
    from datasets import Dataset, DatasetDict, IterableDataset

    if isinstance(value, Dataset):
        if value.format["type"] == "custom":
            what = "the data set has a transform, but rows are only prepared once"
            fix = "apply the transform with map(), or remove it with reset_format()"
            raise DataError(Problem(what, where, fix))
        return value
    if isinstance(value, DatasetDict):
        if split not in value:
            fix = f"set data.split to one of: {', '.join(value)}"
            raise DataError(Problem(f"the DatasetDict has no split {split!r}", where, fix))
        return value[split]
    if isinstance(value, list) and all(isinstance(row, dict) for row in value):
        rows = Dataset.from_list(value)
        return Dataset.from_list(detach_images(value)) if holds_files(rows.features) else rows
    if isinstance(value, IterableDataset):
        fix = "set data.streaming=true for training data, or use Dataset.from_list(list(data.take(n)))"
        raise DataError(Problem("an IterableDataset can only be used as a stream", where, fix))
    fix = "use a path, a Dataset, a DatasetDict, or a list of dicts"
    raise DataError(Problem(f"unsupported data type: {type(value).__name__}", where, fix))
