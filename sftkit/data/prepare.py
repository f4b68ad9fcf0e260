"""Splits ready for batches: prepared batch by batch onto disk, or found there."""

from __future__ import annotations

import dataclasses
import functools
import gc
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.data import cache
from sftkit.data.build import ExampleBuilder
from sftkit.data.columns import Examples
from sftkit.data.counts import Counts
from sftkit.data.identity import parts_of
from sftkit.data.length import NOTHING_TRAINED, fit_length
from sftkit.data.packs import check_packable, packed
from sftkit.data.sources import DataSource
from sftkit.data.stats import DatasetStats
from sftkit.data.store import Spool, open_rows, write_rows

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from sftkit.config import RunConfig
    from sftkit.data.packs import Packer
    from sftkit.data.stream import Stream
    from sftkit.plugin.selected import PluginSet


@dataclass(frozen=True)
class PreparedData:
    """The examples of each split, and what was done to the data on the way.

    Attributes:
        splits: rows ready for the collator, by split: a Dataset, or the Stream to train on.
        counts: what was done to the data.
        stats: what is known of the examples as encoded, before they were cut or packed.
        described: rows, tokens, trained tokens and a fingerprint of each split.
        cached: the splits that were prepared before.
    """

    splits: dict[str, Any]
    counts: Counts
    stats: dict[str, DatasetStats] = field(default_factory=dict)
    described: dict[str, dict[str, Any]] = field(default_factory=dict)
    cached: frozenset[str] = frozenset()

    @property
    def train(self) -> Dataset | Stream:
        """The examples to train on."""
        return self.splits["train"]

    @property
    def eval(self) -> dict[str, Dataset]:
        """The evaluation sets by name."""
        return {name: dataset for name, dataset in self.splits.items() if name != "train"}

    def with_stream(self, stream: Stream) -> PreparedData:
        """With a stream to train on."""
        return dataclasses.replace(self, splits={"train": stream, **self.splits})

    def summary(self) -> dict[str, dict[str, Any]]:
        """Rows, tokens, trained tokens, a fingerprint and the counts of each split, for the manifest."""
        told = {name: {**self.described[name], **self.counts.by_split[name]} for name in self.described}
        train = self.splits.get("train")
        if train is not None and "train" not in self.described:
            told = {
                "train": {"streaming": True, "fingerprint": train.fingerprint, **train.counts.by_split["train"]},
                **told,
            }
        return told


def prepare(
    sources: dict[str, list[DataSource]],
    tokenizer: PreTrainedTokenizerBase,
    config: RunConfig,
    plugins: PluginSet,
    processor: Any = None,
) -> PreparedData:
    """Prepare every split, or find it prepared.

    Args:
        sources: where the rows of each split come from; ``train`` is one of them.
        tokenizer: the run's tokenizer, with its chat template.
        processor: what the model's inputs are made with, where that is more than a tokenizer.

    Raises:
        DataError: for a row of a bad shape, or a split with nothing to train on.
    """
    prepared = PreparedData({}, Counts())
    cached = set()
    for split, parts in sources.items():
        build = functools.partial(_build, parts, ExampleBuilder(split, tokenizer, config, plugins, processor))
        if config.data.cache:
            key = parts_of(split, parts, tokenizer, config, plugins, processor)
            entry, was_there = cache.get(cache.key_of(key), key, build)
            if was_there:
                cached.add(split)
            prepared.splits[split] = open_rows(entry.rows)
        else:
            holder = tempfile.TemporaryDirectory(prefix="sftkit-")
            entry = cache.Entry(Path(holder.name), cache.build_entry(Path(holder.name), {}, build))
            prepared.splits[split] = open_rows(entry.rows)
            prepared.splits[split]._sftkit_directory = holder  # lives as long as the rows do
        prepared.described[split] = entry.info["summary"]
        prepared.stats[split] = DatasetStats.from_dict(entry.info["stats"])
        prepared.counts.by_split[split] = Counter(entry.info["counts"])
    return PreparedData(prepared.splits, prepared.counts, prepared.stats, prepared.described, frozenset(cached))


@contextmanager
def _libraries_uncollected() -> Iterator[None]:
    """The many objects of a batch would have the collector look at all of the libraries again and again."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@_libraries_uncollected()
def _build(sources: list[DataSource], builder: ExampleBuilder, directory: Path) -> dict[str, Any]:
    """Write the rows of a split into ``directory``, and tell what they are and what was done to them."""
    split, config, counts, path = builder.split, builder.config, builder.counts, directory / cache.ROWS
    packer = builder.plugins.hook.make_packer(split=split, config=config, counts=counts)
    encoded = (part for source in sources for part in builder.examples(source))
    if packer is not None:
        told = pack(encoded, packer, path, split, config, counts)
    else:
        told = write_rows(path, (fit_length(part, split, config.data, counts).table() for part in encoded))
        told.pop("untrained")
    if not told["rows"]:
        raise builder.nothing_left()
    return {
        "summary": told,
        "counts": counts.as_dict()[split],
        "stats": builder.stats.as_dict() if builder.stats else {},
    }


def pack(
    parts: Iterable[Examples], packer: Packer, path: Path, split: str, config: RunConfig, counts: Counts
) -> dict[str, Any]:
    """Write the packer's rows of all the examples; see `write_rows` for what is told."""
    whole = packer.cuts_documents and config.data.truncation == "keep_start"

    def tables(examples: Examples) -> Iterator[pa.Table]:
        if len(examples):
            for table in packed(packer, examples):
                yield table
                examples.release()

    with Spool(path.parent) as spool:
        for part in parts:
            check_packable(part)
            spool.append(part if whole else fit_length(part, split, config.data, counts))
        told = write_rows(path, tables(spool.examples()))
    if untrained := told.pop("untrained"):
        counts.add(split, NOTHING_TRAINED, untrained)
    return told
