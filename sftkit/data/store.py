# ruff: noqa: N803, N806 (suffixes are shapes)
"""Examples on disk: written batch by batch, read back through the page cache, so that memory stays flat.

Legend: N examples, S tokens in all of them.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.data.columns import Examples, count_trained, flat, table, tokens_of

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset

BLOCK = 1 << 22
HELD = 1 << 23  # tokens that a spool holds before it writes


def write_rows(path: Path, tables: Iterable[pa.Table]) -> dict[str, Any]:
    """Write tables with the columns ``input_ids`` and ``labels`` as one Arrow stream; rows untrained are left out.

    Returns:
        ``rows``, ``tokens``, ``trained tokens``, a ``fingerprint`` over ids, labels and borders, and how many rows
        were ``untrained``.
    """
    import numpy as np
    import pyarrow as pa
    import xxhash

    digest, told = xxhash.xxh3_128(), {"rows": 0, "tokens": 0, "trained tokens": 0, "untrained": 0}
    writer = None
    with pa.OSFile(str(path), "wb") as file:
        for part in tables:
            labels_S, offsets_N1 = flat(part, "labels")
            trained_N = count_trained(labels_S, offsets_N1)
            if not trained_N.all():
                told["untrained"] += int((trained_N == 0).sum())
                part = _where(part, offsets_N1, trained_N > 0)
                labels_S, offsets_N1 = flat(part, "labels")
            if writer is None:
                writer = pa.ipc.new_stream(file, part.schema)
            ids_S, _ = flat(part, "input_ids")
            for array in (ids_S, np.diff(offsets_N1), labels_S):
                digest.update(np.ascontiguousarray(array).data)
            told["rows"] += len(part)
            told["tokens"] += len(ids_S)
            told["trained tokens"] += int(trained_N.sum())
            writer.write_table(part.combine_chunks())
        if writer is not None:
            writer.close()
    return {**told, "fingerprint": digest.hexdigest()}


def _where(part: pa.Table, offsets_N1: np.ndarray, keep_N: np.ndarray) -> pa.Table:
    keep_S, offsets_M1 = tokens_of(keep_N, offsets_N1)
    return table(offsets_M1, **{name: flat(part, name)[0][keep_S] for name in part.column_names})


def open_rows(path: Path) -> Dataset:
    """The rows of a file that `write_rows` wrote, memory-mapped; each column gives numpy arrays."""
    from datasets import Dataset

    return Dataset.from_file(str(path)).with_format("numpy")


def checksum(path: Path) -> str:
    """A hash of a file's bytes (xxh3, 128 bits)."""
    import xxhash

    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


@dataclass
class Spool(AbstractContextManager["Spool"]):
    """Examples on their way to a packer: appended batch by batch, then read as one; on disk if they are many."""

    directory: Path
    _held: list[Examples] = field(default_factory=list)
    _held_tokens: int = 0
    _lengths: list[np.ndarray] = field(default_factory=list)
    _files: tuple[Any, ...] = ()

    def append(self, examples: Examples) -> None:
        """A batch of examples behind the last."""
        self._held.append(examples)
        self._held_tokens += len(examples.ids_S)
        if self._held_tokens > HELD:
            self._write()

    def examples(self) -> Examples:
        """All of them; memory-mapped if they lie on disk."""
        import numpy as np

        if not self._files:
            return Examples.concatenate(self._held)
        self._write()
        offsets_N1 = np.append(0, np.cumsum(np.concatenate(self._lengths), dtype=np.int64))
        maps = [mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) for file in self._files]
        ids_S, labels_S = (np.frombuffer(mapped, np.int32) for mapped in maps)
        return _Mapped(ids_S, labels_S, offsets_N1, tuple(maps))

    def _write(self) -> None:
        import numpy as np

        if not self._files:
            self._files = tuple((self.directory / name).open("w+b") for name in ("ids.bin", "labels.bin"))
        ids, labels = self._files
        for examples in self._held:
            ids.write(np.ascontiguousarray(examples.ids_S).data)
            labels.write(np.ascontiguousarray(examples.labels_S).data)
            self._lengths.append(examples.lengths_N.astype(np.int32))
        for file in self._files:
            file.flush()
        self._held.clear()
        self._held_tokens = 0

    def __exit__(self, *_: object) -> None:
        """Remove the files."""
        for file in self._files:
            file.close()
            Path(file.name).unlink()


@dataclass(frozen=True)
class _Mapped(Examples):
    maps: tuple[Any, ...] = ()

    def release(self) -> None:
        """The pages that were read no longer count as this process's memory; the data stays in the page cache."""
        for mapped in self.maps:
            if hasattr(mapped, "madvise") and hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)
