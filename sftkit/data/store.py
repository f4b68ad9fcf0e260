# ruff: noqa: N806 (suffixes are shapes)
"""Examples on disk: written batch by batch and memory-mapped, so that memory use does not grow with the data.

Legend: N examples, S tokens in all of them.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.data.columns import (
    ATTACHED,
    IGNORE_INDEX,
    LOSS_WEIGHTS,
    SOURCES,
    Examples,
    count_trained,
    examples_table,
    flatten_column,
)
from sftkit.errors import DataError, Problem

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset

BLOCK = 1 << 22
COUNTED = ("tokens", "trained tokens")
HELD = 1 << 23  # tokens that a spool keeps in memory before it writes them


def write_rows(path: Path, tables: Iterable[pa.Table], sources: Sequence[str] = ()) -> dict[str, Any]:
    """Write tables with ``input_ids``, ``labels`` and optional columns as one Arrow stream.

    Rows without a trained token are left out. If any table has ``loss_weights``, the file has the column, with a weight
    of 1 for the tokens of other tables.

    Args:
        path: the file.
        tables: the rows.
        sources: the names of the sources, if the tables have the column ``sources``.

    Returns:
        The totals: ``rows``, ``tokens``, ``trained tokens``, the number of ``untrained`` rows left out, and a
        ``fingerprint`` over ids, labels, weights, row boundaries and attachments. With several sources, also the
        ``tokens`` and ``trained tokens`` of each, as ``sources``.
    """
    import numpy as np
    import pyarrow as pa
    import xxhash

    digest, totals = xxhash.xxh3_128(), {"rows": 0, "tokens": 0, "trained tokens": 0, "untrained": 0}
    by_source = np.zeros((2, len(sources)), np.int64)
    with _RowFile(path) as file:
        for part in tables:
            labels_S, offsets_N1 = flatten_column(part, "labels")
            trained_N = count_trained(labels_S, offsets_N1)
            if not trained_N.all():
                totals["untrained"] += int((trained_N == 0).sum())
                part = part.filter(pa.array(trained_N > 0)).combine_chunks()
                labels_S, offsets_N1 = flatten_column(part, "labels")
            ids_S, _ = flatten_column(part, "input_ids")
            weights = [flatten_column(part, LOSS_WEIGHTS)[0]] if LOSS_WEIGHTS in part.column_names else []
            for array in (ids_S, np.diff(offsets_N1), labels_S, *weights):
                digest.update(np.ascontiguousarray(array).data)
            if ATTACHED in part.column_names:
                for batch in part.select([ATTACHED]).combine_chunks().to_batches():
                    digest.update(memoryview(batch.serialize()))
            totals["rows"] += len(part)
            totals["tokens"] += len(ids_S)
            totals["trained tokens"] += int(trained_N.sum())
            if SOURCES in part.column_names:
                sources_S, _ = flatten_column(part, SOURCES)
                for row, some_S in zip(by_source, (sources_S, sources_S[labels_S != IGNORE_INDEX]), strict=True):
                    row += np.bincount(some_S, minlength=len(sources))
            file.write(part)
    named = {name: dict(zip(COUNTED, by_source[:, at].tolist(), strict=True)) for at, name in enumerate(sources)}
    return {**totals, "fingerprint": digest.hexdigest(), **({SOURCES: named} if by_source.any() else {})}


class _RowFile(AbstractContextManager["_RowFile"]):
    """An Arrow stream of tables. It gets the column ``loss_weights`` when the first table with this column comes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None
        self._file: Any = None
        self._names: list[str] = []

    def write(self, part: pa.Table) -> None:
        """Append a table."""
        if not self._names:
            self._open(part)
        if LOSS_WEIGHTS in part.column_names and LOSS_WEIGHTS not in self._names:
            self._rewrite(part)
        self._writer.write_table(self._whole(part).combine_chunks())

    def _whole(self, part: pa.Table) -> pa.Table:
        return part if part.column_names == self._names else _with_weights(part)

    def _open(self, part: pa.Table) -> None:
        import pyarrow as pa

        self._file = pa.OSFile(str(self._path), "wb")
        self._writer, self._names = pa.ipc.new_stream(self._file, part.schema), part.column_names

    def _rewrite(self, first: pa.Table) -> None:
        """Write the tables so far again, with weights of 1."""
        import pyarrow as pa

        self._close()
        before = self._path.rename(self._path.with_suffix(".before"))
        self._open(first)
        with pa.memory_map(str(before)) as file:
            for batch in pa.ipc.open_stream(file):
                self._writer.write_table(self._whole(pa.Table.from_batches([batch])))
        before.unlink()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._file.close()

    def __exit__(self, *_: object) -> None:
        """Close the stream; without any table, the file is empty."""
        if self._writer is None:
            self._path.touch()
        self._close()


def _with_weights(part: pa.Table) -> pa.Table:
    """The table, with a weight of 1 for each token."""
    import numpy as np

    values = {name: flatten_column(part, name)[0] for name in part.column_names if name != ATTACHED}
    offsets_N1, sources_S = flatten_column(part, "input_ids")[1], values.pop(SOURCES, None)
    made = examples_table(offsets_N1, np.ones(offsets_N1[-1], np.float32), sources_S, **values)
    return made.append_column(ATTACHED, part[ATTACHED]) if ATTACHED in part.column_names else made


def open_rows(*paths: Path) -> Dataset:
    """The memory-mapped rows of files that `write_rows` wrote, in their order; the columns give numpy arrays."""
    rows = _opened(paths).with_format("numpy")
    return rows.remove_columns(SOURCES) if SOURCES in rows.column_names else rows


def open_sources(*paths: Path) -> Dataset:
    """The column ``sources`` of files that `write_rows` wrote."""
    return _opened(paths).select_columns(SOURCES).with_format("numpy")


def _opened(paths: Sequence[Path]) -> Dataset:
    from datasets import Dataset, concatenate_datasets

    with _still_there():
        files = [Dataset.from_file(str(path)) for path in paths]
    return files[0] if len(files) == 1 else concatenate_datasets(files)


def map_rows(path: Path) -> pa.Table:
    """The memory-mapped rows of a file that `write_rows` wrote; without `datasets`, which takes long to import."""
    import pyarrow as pa

    with _still_there():
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()


@contextmanager
def _still_there() -> Iterator[None]:
    """Raises:
    DataError: if the file that is opened was removed since it was prepared.
    """
    try:
        yield
    except FileNotFoundError as error:
        what = f"the prepared data was removed before it was used: {error}"
        raise DataError(Problem(what, "the cache", "run the command again, which prepares the data")) from error


class OpenedLater(Mapping[str, "Dataset"]):
    """Rows by split, each of which is opened when it is asked for first.

    Args:
        opening: opens the rows of each split.
    """

    def __init__(self, opening: Mapping[str, Callable[[], Dataset]]) -> None:
        self._opening = opening
        self._opened: dict[str, Dataset] = {}

    def __getitem__(self, split: str) -> Dataset:
        if split not in self._opened:
            self._opened[split] = self._opening[split]()
        return self._opened[split]

    def __contains__(self, split: object) -> bool:
        return split in self._opening

    def __iter__(self) -> Iterator[str]:
        return iter(self._opening)

    def __len__(self) -> int:
        return len(self._opening)

    def without(self, split: str) -> OpenedLater:
        """The others, which are still opened later."""
        return OpenedLater({name: partial(self.__getitem__, name) for name in self if name != split})


def checksum(path: Path) -> str:
    """A hash of the bytes of a file (xxh3, 128 bits)."""
    import xxhash

    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


@dataclass
class Spool(AbstractContextManager["Spool"]):
    """Collects examples batch by batch for a packer, which reads them all together; on disk if there are many."""

    directory: Path
    _held: list[Examples] = field(default_factory=list)
    _held_tokens: int = 0
    _lengths: list[np.ndarray] = field(default_factory=list)
    _files: dict[str, Any] = field(default_factory=dict)

    def append(self, examples: Examples) -> None:
        """Append a batch of examples."""
        self._held.append(examples)
        self._held_tokens += len(examples.ids_S)
        if self._held_tokens > HELD:
            self._write()

    def examples(self) -> Examples:
        """All examples; memory-mapped if they are on disk."""
        import numpy as np

        if not self._files:
            return Examples.concatenate(self._held)
        self._write()
        offsets_N1 = np.append(0, np.cumsum(np.concatenate(self._lengths), dtype=np.int64))
        maps = {name: mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) for name, file in self._files.items()}
        ids_S, labels_S = (np.frombuffer(maps[name], np.int32) for name in ("ids", "labels"))
        weights_S = np.frombuffer(maps["weights"], np.float32) if "weights" in maps else None
        sources_S = np.frombuffer(maps[SOURCES], np.int16) if SOURCES in maps else None
        return _Mapped(ids_S, labels_S, offsets_N1, weights_S, None, sources_S, maps=tuple(maps.values()))

    def _write(self) -> None:
        import numpy as np

        for examples in self._held:
            arrays = {"ids": examples.ids_S, "labels": examples.labels_S}
            if "weights" in self._files or examples.weights_S is not None:
                arrays["weights"] = examples.all_weights_S
            if examples.sources_S is not None:
                arrays[SOURCES] = examples.sources_S
            for name, values_S in arrays.items():
                if name not in self._files:
                    self._files[name] = (self.directory / f"{name}.bin").open("w+b")
                    if name == "weights":  # examples written before have weights of 1
                        for lengths_N in self._lengths:
                            self._files[name].write(np.ones(int(lengths_N.sum()), np.float32).data)
                self._files[name].write(np.ascontiguousarray(values_S).data)
            self._lengths.append(examples.lengths_N.astype(np.int32))
        for file in self._files.values():
            file.flush()
        self._held.clear()
        self._held_tokens = 0

    def __exit__(self, *_: object) -> None:
        """Remove the files."""
        for file in self._files.values():
            file.close()
            Path(file.name).unlink()


@dataclass(frozen=True)
class _Mapped(Examples):
    maps: tuple[Any, ...] = ()

    def release(self) -> None:
        """Let pages that were read no longer count as memory of this process; they stay in the page cache."""
        for mapped in self.maps:
            if hasattr(mapped, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)
