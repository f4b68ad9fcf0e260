"""Where rows come from: files, directories, the hub, and loaded objects."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.config.models import SET_NAME_FIX, misnamed_sets
from sftkit.config.train_fields import train_value
from sftkit.data.contents import content_of
from sftkit.data.dropped import DroppedRow
from sftkit.data.files import Found, find_files
from sftkit.data.hub import read_hub
from sftkit.data.mixes import hold_out, mix
from sftkit.data.opening import state_of
from sftkit.data.reading import Read, read_files, read_object
from sftkit.data.splits import choose_split
from sftkit.data.stream_rows import FileRows, LoadedRows, StreamRows, parts_by_file
from sftkit.errors import DataError, Problem

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

    from sftkit.config import DataSection, RunConfig
    from sftkit.data.filtering import RowFilters
    from sftkit.data.pool import Pool


@dataclass(frozen=True)
class Filtered:
    """What filters left of a source.

    Attributes:
        kept: whether each of its rows is kept (bool, N); None keeps all.
        counts: how many rows were dropped, by why.
        dropped: some of the rows that were dropped.
    """

    kept: np.ndarray | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    dropped: list[DroppedRow] = field(default_factory=list)


@dataclass(frozen=True)
class DataSource:
    """Rows that are read on demand.

    Attributes:
        where: the configuration key that names the source.
        identify: identifies the content of the data, wherever it is; called when it is needed. Its result can be
            stored as JSON.
        load: reads the rows.
        notes: what of the source is not read, as counts by description.
        pick: chooses rows, given the number of rows; None uses all.
        names: what the user calls it; of several files that are listed, each name in the list.
        files: how many files each of these names is, if there are several.
        filtered: what filters left of it; ``pick`` chooses from these rows.
    """

    where: str
    identify: Callable[[], Any]
    load: Callable[[], Read]
    notes: Mapping[str, int] = field(default_factory=dict)
    pick: Callable[[int], np.ndarray] | None = None
    names: tuple[str, ...] = ("",)
    files: tuple[int, ...] = (1,)
    filtered: tuple[Callable[[], Filtered], ...] = ()

    @property
    def identity(self) -> Any:
        """Identifies the content of the data."""
        return self.identify()

    def named(self, rows_N: np.ndarray) -> np.ndarray:  # noqa: N803 (a shape)
        """Which of the ``names`` each row is of (int64, N), by the numbers of the rows."""
        import numpy as np

        if len(self.names) == 1:
            return np.zeros(len(rows_N), np.int64)
        return np.searchsorted(np.cumsum(self.files), self.load().place.files(rows_N), side="right")

    def place(self, row: int) -> str:
        """Where a row is, for error messages: file and line if it comes from a file."""
        return f"{self.where}, {self.load().place(row)}"


@dataclass(frozen=True)
class StreamSource:
    """Rows that are read one after the other.

    Attributes:
        where: the configuration key that names the source.
        identity: identifies the data; can be stored as JSON.
        load: what to read.
        notes: what of the source is not read, as counts by description.
        shuffle_buffer: size of the shuffle buffer in rows; 0 keeps the order.
        names: what the user calls it.
    """

    where: str
    identity: Any
    load: Callable[[], StreamRows]
    notes: Mapping[str, int] = field(default_factory=dict)
    shuffle_buffer: int = 0
    names: tuple[str, ...] = ("",)


def source_labels(sources: Sequence[DataSource | StreamSource]) -> list[str]:
    """A short name of each source: that of its file without folder and ending, where these differ."""
    names = [name for source in sources for name in source.names]
    short = [re.sub(r"[^\w.-]+", "_", Path(name).stem) for name in names]
    if len({*short}) < len(short):
        short = [re.sub(r"[^\w.-]+", "_", name) for name in names]
    return short if len({*short}) == len(short) else [f"{at}_{name}" for at, name in enumerate(short, 1)]


def load_sources(
    config: RunConfig,
    train: Any = None,
    evaluation: Any = None,
    pool: Pool | None = None,
    filters: RowFilters | None = None,
) -> dict[str, list[DataSource]]:
    """The sources of each split: ``train`` and the evaluation sets by name. A mixture has several sources.

    Filters drop rows before sources are mixed, and before rows are held out: no row that they keep apart can be on both
    sides. Filters that read the evaluation sets come last.

    Args:
        config: the run as resolved.
        train: a loaded object in place of ``data.train``: a Dataset, a DatasetDict, or a list of rows.
        evaluation: the same in place of ``data.eval``, or a dict of several by name.
        pool: workers that read files of JSON lines; None reads them here. The rows are the same.
        filters: those of the run; None keeps all rows.

    Raises:
        DataError: if a file does not exist or its type is not supported.
    """
    data, seed = config.data, int(train_value(config, "seed"))
    mixed = dict(data.mix or {}) if train is None else {}
    if train is not None:
        sources = [_loaded(train, data.split, data, "data.train")]
    elif mixed:
        sources = [named_source(name, data.split, data, "data.mix", pool) for name in mixed]
    else:
        sources = [named_source(data.train or [], data.split, data, "data.train", pool)]
    if evaluation is not None:
        sets = {name: [_loaded(value, None, data, where)] for name, where, value in _eval_sets(evaluation)}
    elif isinstance(data.eval, float):
        sets = {}
    else:
        named = _eval_sets(data.eval)
        sets = {name: [named_source(value, None, data, where, pool)] for name, where, value in named}
    fraction = data.eval if evaluation is None and isinstance(data.eval, float) else None
    if filters is not None:
        sources = filters.applied(sources)
        sources = sources if fraction is not None else filters.applied(sources, sets)
    if mixed:
        sources = mix(list(zip(sources, mixed.values(), strict=True)), data.mix_until, seed)
    if fraction is not None:
        sources, sets["eval"] = hold_out(sources, fraction, seed)
        sources = sources if filters is None else filters.applied(sources, sets)
    return {"train": sources, **sets}


def _eval_sets(evaluation: Any) -> Iterable[tuple[str, str, Any]]:
    """Name, configuration key and value of each evaluation set."""
    if evaluation is None:
        return ()
    if not isinstance(evaluation, dict) or type(evaluation).__module__.partition(".")[0] == "datasets":
        return [("eval", "data.eval", evaluation)]
    if "train" in evaluation:
        what = "an evaluation set is named train, like the training data"
        raise DataError(Problem(what, "data.eval.train", "rename it"))
    if wrong := misnamed_sets(evaluation):  # of loaded objects; the names in a configuration were checked
        raise DataError(Problem(f"an evaluation set cannot be named {wrong[0]!r}", "data.eval", SET_NAME_FIX))
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
        return [(StreamSource("data.train", identity, lambda: LoadedRows(train), {}, data.shuffle_buffer), 1.0)]
    if data.mix:
        return [(_streamed(name, data, "data.mix"), weight) for name, weight in data.mix.items()]
    return [(_streamed(data.train or [], data, "data.train"), 1.0)]


def source_from_start(config: RunConfig, split: str) -> StreamSource | None:
    """The files of a split, to read rows from their start; raises as `load_streams`.

    None if the rows come from the hub, from a mixture, or out of a fraction that is held out.
    """
    data = config.data.model_copy(update={"shuffle_buffer": 0})
    if split == "train":
        named, where = None if data.mix or isinstance(data.eval, float) else data.train, "data.train"
    else:
        sets = () if isinstance(data.eval, float) else _eval_sets(data.eval)
        named, where = next(((value, where) for name, where, value in sets if name == split), (None, ""))
        data = data.model_copy(update={"split": None})
    if not named or _find([named] if isinstance(named, str) else list(named), data.split, where) is None:
        return None
    return _streamed(named, data, where)


def _streamed(names: str | list[str], data: DataSection, where: str) -> StreamSource:
    listed = [names] if isinstance(names, str) else list(names)
    found = _find(listed, data.split, where)
    parts = parts_by_file(where)  # of all passes

    def load() -> StreamRows:
        if found is None:
            return LoadedRows(read_hub(listed[0], data, where, streaming=True))
        if found.saved:
            return FileRows.of_saved(found.names[0], _saved(found, data.split, where))
        return FileRows.of(found.names, data.split, where, parts)

    if found is None:
        identity: Any = {"hub": [*listed, data.subset, data.split]}
        return StreamSource(where, identity, load, {}, data.shuffle_buffer, (", ".join(listed),))
    identity = {"files": [state_of(name, where) for name in _files(found)], "split": data.split}
    return StreamSource(where, identity, load, found.notes, data.shuffle_buffer, (", ".join(listed),))


def named_source(
    names: str | list[str], split: str | None, data: DataSection, where: str, pool: Pool | None = None
) -> DataSource:
    """The rows that a name stands for: files, a directory, a pattern, a URL or a data set of the hub.

    Args:
        names: the name, or a list of names of files.
        split: the split to read, if there are several; None is for evaluation data.
        data: says what happens to lines that cannot be read.
        where: the configuration key, for errors.
        pool: workers that read files of JSON lines; None reads them here. The rows are the same.
    """
    listed = [names] if isinstance(names, str) else list(names)
    found = _find(listed, split, where)

    @functools.cache
    def load() -> Read:
        if found is None:
            return Read.of(read_hub(listed[0], data, where))
        if found.saved:
            return Read.of(_saved(found, split, where))
        return read_files(found.names, split, data, where, pool)

    if found is None:
        return DataSource(where, lambda: {"fingerprint": load().rows._fingerprint}, load, names=tuple(listed))

    def identify() -> dict[str, Any]:
        root = Path(found.names[0]) if found.saved else None  # saved data are named by their place in the directory
        names = [name if root is None else Path(name).relative_to(root).as_posix() for name in _files(found)]
        contents = [content_of(name, where) for name in _files(found)]
        named = [[name, each] for name, each in zip(names, contents, strict=True)] if found.saved else contents
        return {"files": named, "split": split, "on_bad_row": data.on_bad_row, "not read": dict(found.notes)}

    return DataSource(where, identify, load, found.notes, None, tuple(found.listed), tuple(found.listed.values()))


def _find(listed: list[str], split: str | None, where: str) -> Found | None:
    """The files of all names together, or None for the name of a hub data set."""
    found = {name: find_files(name, split, where) for name in listed}
    files = [each for each in found.values() if each is not None]
    if files and (others := [name for name, each in found.items() if each is None]):
        what = f"{others[0]!r} is not a file, but other names in the list are"
        raise DataError(Problem(what, where, "correct the path, or use data.mix"))
    if not files and len(listed) > 1:
        raise DataError(Problem("a list can only name files", where, "name one hub data set, or use data.mix"))
    if len(files) > 1 and (saved := [each.names[0] for each in files if each.saved]):
        what = f"{saved[0]} was saved with save_to_disk, and cannot be in a list"
        raise DataError(Problem(what, where, "use data.mix"))
    if not files:
        return None
    notes: Counter[str] = sum((Counter(each.notes) for each in files), Counter())
    numbers = {name: len(each.names) for name, each in found.items() if each is not None}
    return Found(tuple(name for each in files for name in each.names), files[0].saved, notes, numbers)


def _files(found: Found) -> Sequence[str]:
    """All files that belong to what was found."""
    if not found.saved:
        return found.names
    return sorted(str(path) for path in Path(found.names[0]).rglob("*") if path.is_file())


def _saved(found: Found, split: str | None, where: str) -> Dataset:
    """Rows that were saved with ``save_to_disk``."""
    from datasets import DatasetDict, load_from_disk

    name = found.names[0]
    try:
        loaded = load_from_disk(name)
    except Exception as error:  # of the file system, of JSON, or of Arrow
        first = (str(error).splitlines() or [""])[0] or type(error).__name__
        fix = "save it again with save_to_disk"
        raise DataError(Problem(f"cannot read the saved data set: {first}", f"{where}, {name}", fix)) from error
    return loaded[choose_split(loaded, split, name, where)] if isinstance(loaded, DatasetDict) else loaded


def _loaded(value: Any, split: str | None, data: DataSection, where: str) -> DataSource:
    read = read_object(value, split, data, where)
    return DataSource(where, lambda: {"fingerprint": read.rows._fingerprint}, lambda: read)
