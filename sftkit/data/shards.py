"""Prepared rows as shards: Arrow files of limited size, each with a digest, and a manifest that lists them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.data.store import checksum
from sftkit.errors import ConfigError, Problem

if TYPE_CHECKING:
    import pyarrow as pa

MANIFEST = "prepared.json"
FORMAT = 2
SHARD = 256 << 20  # bytes


def write_split(rows: Path, directory: Path, name: str) -> dict[str, Any]:
    """Write the rows of a split as shards.

    Args:
        rows: the Arrow file of the split.
        directory: where to write.
        name: what the names of the files begin with.

    Returns:
        ``shards``: the name of each file, its rows, size and digest.
    """
    import pyarrow as pa

    shards: list[dict[str, Any]] = []
    with pa.memory_map(str(rows)) as file:
        reader = pa.ipc.open_stream(file)
        for at, batches in enumerate(_by_size(reader)):
            path, number = directory / f"{name}-{at:05d}.arrow", 0
            with pa.ipc.new_stream(str(path), reader.schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
                    number += len(batch)
            shards.append(_listed(path, number))
    return {"shards": shards}


def _listed(path: Path, rows: int) -> dict[str, Any]:
    return {"name": path.name, "rows": rows, "bytes": path.stat().st_size, "digest": checksum(path)}


def _by_size(batches: Iterable[pa.RecordBatch]) -> Iterator[Iterator[pa.RecordBatch]]:
    """The batches of each shard, which is full with the batch that reaches its size."""
    left = iter(batches)

    def shard(first: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        yield first
        size = first.nbytes
        while size < SHARD and (batch := next(left, None)) is not None:
            yield batch
            size += batch.nbytes

    while (first := next(left, None)) is not None:
        yield shard(first)


def file_names(splits: Iterable[str]) -> dict[str, str]:
    """What the names of the files of each split begin with."""
    plain = {split: re.sub(r"[^\w.-]+", "_", split) for split in splits}
    if len({*plain.values()}) < len(plain):
        return {split: f"{name}-{at}" for at, (split, name) in enumerate(plain.items(), 1)}
    return plain


def files_of(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All files that a manifest lists."""
    return [file for split in manifest["splits"].values() for file in split["shards"]]


def parse_manifest(text: str | bytes, name: str) -> dict[str, Any]:
    """A manifest from its text.

    Raises:
        ConfigError: if it is none, or one of a later version.
    """
    try:
        found: dict[str, Any] = json.loads(text)
        known = found["format"] == FORMAT and isinstance(found["splits"], dict)
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        what = f"{name} has no {MANIFEST} that this version of sftkit reads"
        raise ConfigError(Problem(what, "data.prepared", "prepare the data again with `sftkit prepare`"))
    return found
