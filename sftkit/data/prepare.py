"""Splits ready for batches: prepared batch by batch on disk, or found in the cache."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.data import cache
from sftkit.data.build import ExampleBuilder
from sftkit.data.columns import ATTACHED, SOURCES, Examples, rows_of
from sftkit.data.counts import Counts
from sftkit.data.dropped import DroppedRow, dropped_rows
from sftkit.data.encode import FAR_AHEAD
from sftkit.data.identity import parts_of
from sftkit.data.jobs import examples_in
from sftkit.data.length import NOTHING_TRAINED, fit_length
from sftkit.data.packed import check_packable, packed
from sftkit.data.pool import Pool
from sftkit.data.sources import DataSource, source_labels
from sftkit.data.stats import DatasetStats
from sftkit.data.store import OpenedLater, Spool, map_rows, open_rows, open_sources, write_rows
from sftkit.data.tokenizing.use import EngineOfRun, accepts
from sftkit.garbage import without_libraries
from sftkit.redact import without_secrets

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from sftkit.config import RunConfig
    from sftkit.data.packs import Packer
    from sftkit.data.stream import Stream
    from sftkit.plugin.selected import PluginSet

AT_ONCE = 4096  # rows


@dataclass(frozen=True)
class PreparedData:
    """The examples of each split, and what happened to the data.

    Attributes:
        splits: rows ready for the collator, by split: a Dataset, opened when it is asked for, or the Stream to train
            on.
        counts: what was done to the data; for a stream, to its first window.
        stats: statistics of the examples as encoded, before they were cut or packed; for a stream, of its first window.
        described: rows, tokens, trained tokens and a fingerprint of each split.
        formatted: the columns of the sources of each split, with their types, as they were formatted.
        cached: the splits that were found in the cache.
        entries: the files of each split; of data that `sftkit prepare` has written, none.
        directory: the temporary directory of rows that are not cached. It is removed together with this object, so
            keep the object as long as rows are read.
        dropped: of each split, some of the rows that were dropped or skipped, for each reason; for a stream, of its
            first window.
        sources: of each split with several sources, the column ``sources`` of its rows; their names are in
            ``described``.
        tokenizing: of each split that an engine has tokenized, the texts of the engine, and those that were compared.
    """

    splits: Mapping[str, Any]
    counts: Counts
    stats: dict[str, DatasetStats] = field(default_factory=dict)
    described: dict[str, dict[str, Any]] = field(default_factory=dict)
    formatted: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    cached: frozenset[str] = frozenset()
    entries: dict[str, cache.Entry] = field(default_factory=dict)
    directory: tempfile.TemporaryDirectory[str] | None = None
    sources: Mapping[str, Dataset] = field(default_factory=dict)
    dropped: dict[str, list[DroppedRow]] = field(default_factory=dict)
    tokenizing: dict[str, dict[str, int]] = field(default_factory=dict)

    def table(self, split: str) -> pa.Table:
        """The rows of a split that is no stream, memory-mapped, with the columns that `write_rows` wrote."""
        entry = self.entries.get(split)
        return self.splits[split].with_format("arrow")[:] if entry is None else map_rows(entry.rows)

    @property
    def train(self) -> Dataset | Stream:
        """The examples to train on."""
        return self.splits["train"]

    def rows(self, split: str, first: int, number: int) -> list[dict[str, Any]]:
        """Rows of a split as the collator takes them, up to its end; only these are read.

        Args:
            split: the split.
            first: the number of the first one, from 0.
            number: how many.
        """
        if split not in self.entries:
            rows = self.splits[split]
            if not hasattr(rows, "__len__"):
                return list(islice(rows, first, first + number))
            return [rows[index] for index in range(first, min(first + number, len(rows)))]
        table = self.table(split)
        if ATTACHED in table.column_names:
            return [self.splits[split][index] for index in range(first, min(first + number, len(table)))]
        kept = [name for name in table.column_names if name != SOURCES]
        return list(rows_of(table.select(kept).slice(first, number)))

    def each_row(self, split: str) -> Iterator[dict[str, Any]]:
        """All rows of a split that is no stream, one after the other, without `datasets`."""
        import pyarrow as pa

        for batch in self.table(split).to_batches(max_chunksize=AT_ONCE):
            yield from rows_of(pa.Table.from_batches([batch]))

    @property
    def eval(self) -> Mapping[str, Dataset]:
        """The evaluation sets by name."""
        if isinstance(self.splits, OpenedLater):
            return self.splits.without("train")
        return {name: dataset for name, dataset in self.splits.items() if name != "train"}

    def held_out(self) -> PreparedData:
        """This data without the examples to train on."""
        names = ("stats", "described", "formatted", "sources", "dropped", "tokenizing")
        kept: dict[str, Any] = {
            name: {split: each for split, each in getattr(self, name).items() if split != "train"} for name in names
        }
        kept["splits"] = self.eval
        kept["counts"] = Counts({split: each for split, each in self.counts.by_split.items() if split != "train"})
        return dataclasses.replace(self, **kept)

    def with_stream(self, stream: Stream) -> PreparedData:
        """This data, with a stream to train on, and the counts and statistics of its first window."""
        added: dict[str, Any] = {"splits": {"train": stream, **self.splits}}
        if stream.first is not None:
            added["counts"] = Counts({"train": stream.first.counts, **self.counts.by_split})
            added["stats"] = {"train": stream.first.stats, **self.stats}
            added["dropped"] = {"train": stream.first.dropped, **self.dropped}
        return dataclasses.replace(self, **added)

    @property
    def columns(self) -> list[dict[str, Any]]:
        """The columns of the sources of the training data, with their types, as `datasets.Features.to_dict`."""
        train = self.splits.get("train")
        return self.formatted.get("train") or list(getattr(train, "columns", ()))

    @property
    def tokenized(self) -> dict[str, dict[str, int]]:
        """As ``tokenizing``, for the manifest: with what a stream has read so far."""
        of_stream = getattr(self.splits.get("train"), "tokenizing", {})
        return ({"train": of_stream} if of_stream else {}) | self.tokenizing

    def summary(self) -> dict[str, dict[str, Any]]:
        """Rows, tokens, trained tokens, a fingerprint and the counts of each split, for the manifest."""
        splits = {name: {**described, **self.counts.by_split[name]} for name, described in self.described.items()}
        if "train" not in self.splits or "train" in self.described:
            return splits
        train = self.splits["train"]
        stream = {"streaming": True, "fingerprint": train.fingerprint, **train.counts.by_split["train"]}
        return {"train": stream, **splits}


def prepare(
    sources: dict[str, list[DataSource]],
    tokenizer: PreTrainedTokenizerBase,
    config: RunConfig,
    plugins: PluginSet,
    processor: Any = None,
    pool: Pool | None = None,
) -> PreparedData:
    """Prepare every split, or find it in the cache.

    Args:
        sources: the sources of each split.
        tokenizer: the run's tokenizer, with its chat template.
        config: the run as resolved.
        plugins: the selected plugins.
        processor: the processor that the tokenizer belongs to, if there is one.
        pool: workers that make the examples; None makes them here. The rows are the same.

    Raises:
        DataError: for a malformed row, or a split with nothing to train on.
    """
    usable = functools.partial(accepts, plugins)

    def entries_of() -> tuple[dict[str, cache.Entry], set[str], Any]:
        engine = EngineOfRun(plugins, tokenizer, config)
        directory = None if config.data.cache else tempfile.TemporaryDirectory(prefix="sftkit-")
        entries: dict[str, cache.Entry] = {}
        cached = set()
        for split, parts in sources.items():
            builder = ExampleBuilder(split, tokenizer, config, plugins, processor, engine=engine, ahead=FAR_AHEAD)
            build = functools.partial(_build, parts, builder, pool)
            key = parts_of(split, parts, tokenizer, config, plugins, processor) if directory is None or pool else {}
            if directory is None:
                entries[split], existed = cache.get(cache.key_of(key), key, build, usable)
                cached |= {split} if existed else set()
            else:
                place = Path(directory.name, str(len(entries)))  # not the split's name, which may be no file name
                place.mkdir()
                entries[split] = cache.build_entry(place, key, build)
        return entries, cached, directory

    entries, cached, directory = entries_of()
    if not all(usable(entry.info) for entry in entries.values()):  # a text has differed, and those before may, too
        entries, again, directory = entries_of()
        cached &= again
    return PreparedData(
        splits=OpenedLater({split: functools.partial(open_rows, entry.rows) for split, entry in entries.items()}),
        counts=Counts({split: Counter(entry.info["counts"]) for split, entry in entries.items()}),
        stats={split: DatasetStats.from_dict(entry.info["stats"]) for split, entry in entries.items()},
        described={split: entry.info["summary"] for split, entry in entries.items()},
        formatted={split: entry.info["columns"] for split, entry in entries.items()},
        cached=frozenset(cached),
        entries=entries,
        directory=directory,
        sources=OpenedLater(
            {
                split: functools.partial(open_sources, entry.rows)
                for split, entry in entries.items()
                if SOURCES in entry.info["summary"]
            }
        ),
        dropped={split: dropped_rows(entry.info["dropped"]) for split, entry in entries.items()},
        tokenizing={split: entry.info["tokenizing"] for split, entry in entries.items() if "tokenizing" in entry.info},
    )


@without_libraries()  # which a batch's many objects would trigger often
def _build(sources: list[DataSource], builder: ExampleBuilder, pool: Pool | None, directory: Path) -> dict[str, Any]:
    """Write the rows of a split into a directory, and return the ``info`` of its cache entry."""
    split, config, counts, path = builder.split, builder.config, builder.counts, directory / cache.ROWS
    assert builder.plugins is not None
    packer = builder.plugins.hook.make_packer(split=split, config=config, counts=counts)
    names = source_labels(sources)
    several = len(names) > 1
    firsts = [sum(len(source.names) for source in sources[:at]) for at in range(len(sources))]
    numbered = zip(firsts, sources, strict=True)
    make = builder.examples if pool is None else functools.partial(examples_in, pool, builder)
    encoded = (part for first, source in numbered for part in make(source, first if several else None))
    if packer is not None:
        made_by = builder.plugins.responsible("make_packer")
        summary = pack(encoded, packer, path, split, config, counts, names, made_by)
    else:
        summary = write_rows(path, (fit_length(part, split, config.data, counts).table() for part in encoded), names)
        summary.pop("untrained")
    if not summary["rows"]:
        raise builder.nothing_left()
    for number, some in counts.by_source.get(split, {}).items():
        if SOURCES in summary:
            summary[SOURCES][names[number]] |= some
    stats = builder.stats.as_dict() if builder.stats else {}
    info = {"summary": summary, "counts": counts.as_dict()[split], "stats": stats, "columns": builder.columns}
    info["dropped"] = without_secrets([each._asdict() for each in builder.dropped.rows])
    if builder.engine is not None and builder.tokenizing:
        info |= builder.engine.described(builder.tokenizing, split)
    return {**info, "names": without_secrets([name for source in sources for name in source.names])}


def pack(
    parts: Iterable[Examples],
    packer: Packer,
    path: Path,
    split: str,
    config: RunConfig,
    counts: Counts,
    sources: Sequence[str] = (),
    made_by: str = "the packing plugin",
) -> dict[str, Any]:
    """Write the packer's rows of all examples; returns the totals of `write_rows`, without ``untrained``."""
    whole = packer.cuts_documents and config.data.truncation == "keep_start"

    def tables(examples: Examples) -> Iterator[pa.Table]:
        if len(examples):
            for table in packed(packer, examples, config.data.max_length, made_by):
                yield table
                examples.release()

    with Spool(path.parent) as spool:
        for part in parts:
            check_packable(part)
            spool.append(part if whole else fit_length(part, split, config.data, counts))
        totals = write_rows(path, tables(spool.examples()), sources)
    if untrained := totals.pop("untrained"):
        counts.add(split, NOTHING_TRAINED, untrained)
    return totals
