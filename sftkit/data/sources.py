"""Where rows come from: files, globs, directories, hub names, and loaded objects."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from sftkit.data.cache import root
from sftkit.data.files import check_encoding, diagnose, find_files, kind_of, locate, without_bad_lines
from sftkit.data.media import holds_files, without_files
from sftkit.errors import DataError, Problem

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, IterableDataset

    from sftkit.config import RunConfig


class Read(NamedTuple):
    """Rows as read, how many lines were left out because they cannot be, and the files read instead of others."""

    rows: Dataset
    bad_lines: int = 0
    instead: Mapping[Path, Path] = MappingProxyType({})


@dataclass(frozen=True)
class DataSource:
    """Rows that are read when they are needed.

    Attributes:
        where: the key of the configuration that names it.
        identity: what tells this data from other data, without reading it; JSON-able.
        load: reads the rows.
        files: the files they come from, where they do.
        pick: which of the rows, given their number; all where None.
    """

    where: str
    identity: Any
    load: Callable[[], Read]
    files: tuple[Path, ...] = ()
    pick: Callable[[int], np.ndarray] | None = None

    def place(self, row: int) -> str:
        """Where a row is, for people: file and line where there are files."""
        if not self.files:
            return f"{self.where}, row {row + 1}"
        return f"{self.where}, {locate(self.files, row, self.load().instead)}"


@dataclass(frozen=True)
class StreamSource:
    """Rows that are read one after the other, and never all there.

    Attributes:
        where: the key of the configuration that names it.
        identity: what tells this data from other data.
        load: begins to read.
        shuffle_buffer: rows among which the next is drawn; 0 keeps the order.
    """

    where: str
    identity: Any
    load: Callable[[], IterableDataset]
    shuffle_buffer: int = 0


def load_streams(config: RunConfig, train: Any = None) -> list[tuple[StreamSource, float]]:
    """The sources of the training stream, with their weights.

    Args:
        train: a loaded IterableDataset instead of ``data.train``.

    Raises:
        DataError: if a file is not there or of an unknown kind.
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
    load = functools.partial(_read_files, files, streaming=True)
    identity: Any = {"files": _stats(files)}
    if not files:
        load = functools.partial(_read_hub, listed[0], config, where, streaming=True)
        identity = {"hub": [*listed, config.data.subset, config.data.split]}
    return StreamSource(where, identity, load, config.data.shuffle_buffer)


def _stats(files: Iterable[Path]) -> list[Any]:
    return [(str(path.resolve()), (s := path.stat()).st_size, s.st_mtime_ns, s.st_ctime_ns) for path in files]


def load_sources(config: RunConfig, train: Any = None, evaluation: Any = None) -> dict[str, list[DataSource]]:
    """The sources of each split: ``train`` and the evaluation sets by name; several where they are mixed.

    Args:
        config: the run as resolved.
        train: a loaded object instead of ``data.train``: a Dataset, a DatasetDict, or a list of rows.
        evaluation: the same for ``data.eval``, or a dict of several by name.

    Raises:
        DataError: if a file is not there or of an unknown kind.
    """
    data = config.data
    if train is not None:
        sources = [_loaded(train, data.split, "data.train")]
    elif data.mix:
        sources = mixed([(_named(name, config, "data.mix"), weight) for name, weight in data.mix.items()], config)
    else:
        sources = [_named(data.train or [], config, "data.train")]
    splits = {"train": sources}
    if evaluation is not None:
        named = evaluation if _is_several(evaluation) else {"eval": evaluation}
        _check_names(named)
        splits |= {name: [_loaded(value, "train", f"data.eval.{name}")] for name, value in named.items()}
    elif isinstance(data.eval, float):
        seed = int(config.train.get("seed", 42))
        splits = {
            "train": [_part(source, data.eval, seed, held_out=False) for source in sources],
            "eval": [_part(source, data.eval, seed, held_out=True) for source in sources],
        }
    elif isinstance(data.eval, dict):
        _check_names(data.eval)
        splits |= {name: [_named(value, config, f"data.eval.{name}")] for name, value in data.eval.items()}
    elif data.eval is not None:
        splits["eval"] = [_named(data.eval, config, "data.eval")]
    return splits


def _named(names: str | list[str], config: RunConfig, where: str) -> DataSource:
    listed = [names] if isinstance(names, str) else list(names)
    files = tuple(path for name in listed for path in find_files(name, where) or ())

    @functools.cache
    def load() -> Read:
        return read(names, config, where)

    if files:
        return DataSource(where, {"files": _stats(files), "on_bad_row": config.data.on_bad_row}, load, files)
    return DataSource(where, {"fingerprint": load().rows._fingerprint}, load)


def _loaded(value: Any, split: str, where: str) -> DataSource:
    rows = as_rows(value, split, where)
    return DataSource(where, {"fingerprint": rows._fingerprint}, lambda: Read(rows))


def _part(source: DataSource, fraction: float, seed: int, held_out: bool) -> DataSource:
    """The rows held out of a source, or the others; in their order."""
    inner = source.pick

    def pick(number: int) -> np.ndarray:
        import numpy as np

        rows = np.arange(number) if inner is None else inner(number)
        if len(rows) < 2:
            fix = "give an evaluation file, or more rows"
            raise DataError(Problem(f"{len(rows)} rows cannot be split", "data.eval", fix))
        out = np.zeros(len(rows), bool)
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        out[np.random.default_rng(seed).permutation(len(rows))[:count]] = True
        return rows[out if held_out else ~out]

    identity = {"of": source.identity, "fraction": fraction, "seed": seed, "held out": held_out}
    return dataclasses.replace(source, identity=identity, pick=pick)


def mixed(weighted: list[tuple[DataSource, float]], config: RunConfig) -> list[DataSource]:
    """The sources, each with as many rows as its weight gives it.

    ``data.mix_until: first`` takes rows until the first source has no more, so that none is repeated; ``all`` until
    each has been seen whole, so that others are repeated. Which rows is drawn with ``train.seed``.
    """
    seed = int(config.train.get("seed", 42))
    until = config.data.mix_until

    @functools.cache
    def size() -> float:
        totals = [len(source.load().rows) / weight for source, weight in weighted]
        return min(totals) if until == "first" else max(totals)

    def picker(weight: float) -> Callable[[int], np.ndarray]:
        def pick(number: int) -> np.ndarray:
            import numpy as np

            times, rest = divmod(max(round(size() * weight), 1), number)
            some = np.random.default_rng(seed).permutation(number)[:rest]
            return np.sort(np.concatenate([np.tile(np.arange(number), times), some]))

        return pick

    together = {"mix": [(source.identity, weight) for source, weight in weighted], "until": until, "seed": seed}
    return [
        dataclasses.replace(source, identity={"of": source.identity, **together}, pick=picker(weight))
        for source, weight in weighted
    ]


def _check_names(named: Mapping[str, Any]) -> None:
    if "train" in named:
        raise DataError(
            Problem("an evaluation set is named train, as the training data", "data.eval.train", "rename it")
        )


def _is_several(evaluation: Any) -> bool:
    from datasets import DatasetDict

    return isinstance(evaluation, dict) and not isinstance(evaluation, DatasetDict)


def as_rows(value: Any, split: str, where: str) -> Dataset:
    """A loaded object as a Dataset.

    Raises:
        DataError: if it is something else than a Dataset, a DatasetDict with ``split``, or a list of dicts.
    """
    from datasets import Dataset, DatasetDict, IterableDataset

    if isinstance(value, Dataset):
        if value.format["type"] == "custom":
            fix = "apply it beforehand, by map, or take it off (reset_format)"
            raise DataError(Problem("the data set has a transform, and rows are prepared once", where, fix))
        return value
    if isinstance(value, DatasetDict):
        if split not in value:
            fix = f"set data.split to one of: {', '.join(value)}"
            raise DataError(Problem(f"the DatasetDict has no split {split!r}", where, fix))
        return value[split]
    if isinstance(value, list) and all(isinstance(row, dict) for row in value):
        rows = Dataset.from_list(value)
        return Dataset.from_list(without_files(value)) if holds_files(rows.features) else rows
    if isinstance(value, IterableDataset):
        fix = "set data.streaming=true for training data, or take its first rows: Dataset.from_list(list(data.take(n)))"
        raise DataError(Problem("an IterableDataset is a stream", where, fix))
    fix = "pass a path, a Dataset, a DatasetDict, or a list of dicts"
    raise DataError(Problem(f"{type(value).__name__} is no data", where, fix))


def read(source: str | list[str], config: RunConfig, where: str) -> Read:
    """Read one source: all its files are of one kind and have the same columns.

    Raises:
        DataError: if a file is missing, of an unknown kind, or cannot be parsed; with file and line where known.
    """
    names = [source] if isinstance(source, str) else list(source)
    found = {name: find_files(name, where) for name in names}
    files = [path for paths in found.values() for path in paths or ()]
    if not files:
        if len(names) > 1:
            raise DataError(Problem("hub data sets are named one at a time", where, "give one name, or files"))
        return Read(_read_hub(names[0], config, where))
    if missing := [name for name, paths in found.items() if paths is None]:
        raise DataError(
            Problem(f"{missing[0]!r} is no file, and others are", where, "correct the path, or use data.mix")
        )
    kinds = {kind_of(path) for path in files}
    if len(kinds) > 1:
        raise DataError(Problem(f"the files are of several kinds: {', '.join(sorted(kinds))}", where, "give one kind"))
    try:
        check_encoding(files, where)
        return Read(_read_files(files))
    except Exception as error:  # datasets wraps whatever its readers raise
        problems = error.problems if isinstance(error, DataError) else tuple(diagnose(files, where))
        if config.data.on_bad_row == "skip" and kinds == {"json"} and all(path.stat().st_size for path in files):
            return _read_without_bad_lines(files, where, config.data.max_bad_rows)
        raise DataError(problems or [_unreadable(error, files, where)]) from error


def _read_without_bad_lines(files: list[Path], where: str, limit: int) -> Read:
    import xxhash

    copies: dict[Path, Path] = {}
    bad = 0
    for path in files:
        name = xxhash.xxh3_64_hexdigest(str(path.resolve()).encode())
        copies[path] = root() / "clean" / name / path.name
        bad += without_bad_lines(path, copies[path], where, limit - bad)
    return Read(_read_files(list(copies.values())), bad, copies)


def _read_files(files: list[Path], streaming: bool = False) -> Any:
    from datasets import load_dataset

    names = [str(path) for path in files]
    options = {"sep": "\t"} if files[0].suffix.lower() == ".tsv" else {}
    with _quiet():
        return load_dataset(kind_of(files[0]), data_files=names, split="train", streaming=streaming, **options)


def _read_hub(name: str, config: RunConfig, where: str, streaming: bool = False) -> Any:
    from datasets import load_dataset

    try:
        with _quiet():
            return load_dataset(name, config.data.subset, split=config.data.split, streaming=streaming)
    except Exception as error:  # the hub's client raises many kinds; each means that this name gave no data
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        fix = "check the name, data.subset, data.split and the network; a local path must exist"
        raise DataError(Problem(f"cannot load the data set {name!r}: {first}", where, fix)) from error


def _unreadable(error: Exception, files: list[Path], where: str) -> Problem:
    cause = error.__cause__ or error
    first = (str(cause).splitlines() or [type(cause).__name__])[0]
    names = ", ".join(str(path) for path in files[:3])
    return Problem(f"cannot be read: {first}", f"{where} ({names})", "the files must have the same columns and types")


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of datasets, whose reading is told by a count of rows, and no errors told twice."""
    import datasets

    logger = logging.getLogger("datasets")
    level = logger.level
    logger.setLevel(logging.CRITICAL)

    were_on = datasets.is_progress_bar_enabled() if hasattr(datasets, "is_progress_bar_enabled") else True
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if were_on:
            datasets.enable_progress_bars()
