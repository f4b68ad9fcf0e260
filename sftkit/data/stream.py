"""Training data that is never complete: read, formatted, encoded and packed window by window during the run."""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from torch.utils.data import IterableDataset

from sftkit.config.train_fields import data_seed
from sftkit.data import cache
from sftkit.data.build import ExampleBuilder
from sftkit.data.columns import SOURCES, Examples, rows_of
from sftkit.data.dropped import DroppedRow
from sftkit.data.feed import SPLIT, Feed
from sftkit.data.filtering import RowFilters
from sftkit.data.identity import parts_of
from sftkit.data.length import fit_length
from sftkit.data.packed import packed
from sftkit.data.sources import DataSource, StreamSource, source_labels
from sftkit.data.stats import DatasetStats
from sftkit.data.threads import thread_ahead
from sftkit.data.tokenizing.use import EngineOfRun

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

    from sftkit.config import RunConfig
    from sftkit.data.counts import Counts
    from sftkit.data.packs import Packer
    from sftkit.plugin.selected import PluginSet

Position = dict[str, Any]
SHOWN = 32  # rows of the first window that are kept to be shown


class FirstWindow(NamedTuple):
    """What the first window of a stream tells about all of it.

    Attributes:
        stats: statistics of the examples that were made for it.
        counts: what was done to their rows.
        rows: the first rows that are ready for the collator.
        dropped: some of the rows that were dropped.
    """

    stats: DatasetStats
    counts: Counter[str]
    rows: list[dict[str, Any]]
    dropped: list[DroppedRow]


class Stream(IterableDataset):
    """Rows ready for the collator, without an end: a source that is used up starts again, in another order.

    Each iteration gives the same rows in the same order. Each process reads its own share of the rows. An iteration
    after `seek` starts at a later row, and prepares nothing before the window of this row.

    Args:
        sources: the sources, with weights; a window takes rows from each in proportion, drawn with the run's seed.
        tokenizer: the run's tokenizer, with its chat template.
        config: the run as resolved.
        plugins: the selected plugins.
        processor: the processor that the tokenizer belongs to, if there is one.
        held_out: the evaluation sets, for filters that read them.
        rank: the number of this process.
        world_size: the number of processes.

    Attributes:
        source_names: the names of the sources, if there are several.
        fingerprint: a hash over everything that the rows depend on.
        first: statistics of the first window, and what was done to its rows; None before an iteration has made it.
    """

    def __init__(
        self,
        sources: list[tuple[StreamSource, float]],
        tokenizer: PreTrainedTokenizerBase,
        config: RunConfig,
        plugins: PluginSet,
        processor: Any = None,
        *,
        held_out: Mapping[str, list[DataSource]] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._sources, self._tokenizer, self._config, self._plugins = sources, tokenizer, config, plugins
        self._processor, self._rank, self._world_size = processor, rank, world_size
        self._seed = data_seed(config)
        self.source_names = source_labels([source for source, _ in sources]) if len(sources) > 1 else []
        self._filters, self._held_out = RowFilters(plugins, config), held_out or {}
        self._engine = EngineOfRun(plugins, tokenizer, config)
        self._builder = self._new_builder()
        self.first: FirstWindow | None = None
        parts = parts_of(SPLIT, [source for source, _ in sources], tokenizer, config, plugins, processor)
        if self._filters:
            parts["held out"] = {name: [each.identity for each in some] for name, some in self._held_out.items()}
        seeds = {"seed": self._seed, "weights": [weight for _, weight in sources], "world": world_size}
        self.fingerprint = cache.key_of({**parts, **seeds})
        # An IterableDataset stores its own position, and the thread of an abandoned iteration may still be reading.
        self._reading = threading.Lock()
        self._begun: list[Position] = []  # of the windows that the iteration has given rows of
        self._sought: Position | None = None

    def position(self, given: int) -> Position:
        """Where to continue after ``given`` rows, as plain data for `seek`: the next row, and its window."""
        before = [position for position in self._begun if position["given"] <= given]
        self._begun = [*before[-1:], *self._begun[len(before) :]]
        return {**self._begun[0], "next": given}

    def seek(self, position: Position) -> None:
        """Let the next iteration start at a row. The window of this row is prepared again, and nothing before it."""
        self._sought = position

    @property
    def start(self) -> int:
        """The number of rows before the first one of the next iteration."""
        return self._sought["next"] if self._sought else 0

    def _new_builder(self) -> ExampleBuilder:
        made_with = self._tokenizer, self._config, self._plugins, self._processor
        return ExampleBuilder(SPLIT, *made_with, engine=self._engine)

    @property
    def counts(self) -> Counts:
        """What was done to the data since the last iteration began; includes one window that is prepared ahead."""
        return self._builder.counts

    @property
    def tokenizing(self) -> dict[str, int]:
        """The texts that an engine has tokenized since the last iteration began, and those that were compared."""
        return dict(self._builder.tokenizing)

    @property
    def columns(self) -> list[dict[str, Any]]:
        """The columns of the sources since the last iteration began; see `ExampleBuilder`."""
        return self._builder.columns

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Examples as mappings of numpy arrays, like those of a prepared data set.

        Raises:
            DataError: for a malformed row, or a first window with nothing to train on.
        """
        for row in self.with_sources():
            yield _without_sources(row)

    def with_sources(self) -> Iterator[dict[str, Any]]:
        """As an iteration; with several sources, the examples also have the column ``sources``."""
        self._builder = self._new_builder()
        sought, self._sought, self._begun = self._sought, None, []
        given, start = (sought["given"], sought["next"]) if sought else (0, 0)
        if sought:
            self._builder.counts.by_split[SPLIT] = Counter(sought["counts"])
        windows = self._windows(self._builder, sought)

        def next_window() -> tuple[Position, list[pa.Table]]:
            with self._reading:
                return next(windows)

        with thread_ahead() as pool:
            waiting = pool.submit(next_window)
            while True:
                position, tables = waiting.result()
                waiting = pool.submit(next_window)
                self._begun.append({**position, "given": given})
                for table in tables:
                    begin = min(max(start - given, 0), len(table))  # of the rows that were given before
                    given += len(table)
                    yield from rows_of(table.slice(begin))

    def _windows(self, builder: ExampleBuilder, sought: Position | None) -> Iterator[tuple[Position, list[pa.Table]]]:
        """The tables of each window, and what `seek` needs to begin with it."""
        import numpy as np

        config, counts = self._config, builder.counts
        packer = self._plugins.hook.make_packer(split=SPLIT, config=config, counts=counts)
        whole = packer is not None and packer.cuts_documents and config.data.truncation == "keep_start"
        share = (self._rank, self._world_size)
        feeds = [Feed(source, self._seed + number, share, builder) for number, (source, _) in enumerate(self._sources)]
        named = self.source_names or [""]
        filters = self._filters.of_stream((feed.columns for feed in feeds), self._held_out)
        for feed, name in zip(feeds, named, strict=True):
            feed.filters = [(each, name) for each in filters]
        weights = np.array([weight for _, weight in self._sources])
        random = np.random.default_rng([self._seed, self._rank])
        if sought:
            random.bit_generator.state = sought["random"]
            for feed, place in zip(feeds, sought["feeds"], strict=True):
                feed.seek(*place)
        while True:
            position = {"random": random.bit_generator.state, "feeds": [feed.place for feed in feeds]}
            position["counts"] = dict(counts.by_split.get(SPLIT, {}))
            sizes = random.multinomial(config.data.window, weights / weights.sum())
            parts = [feed.take(int(count)) for feed, count in zip(feeds, sizes, strict=True)]
            window = Examples.concatenate(_numbered(parts) if self.source_names else parts)
            if len(feeds) > 1 or config.data.shuffle_buffer:
                window = window.take(random.permutation(len(window)))
            fitted = window if whole else fit_length(window, SPLIT, config.data, counts)
            if not fitted.trained_N.any():
                if self.first is None:
                    raise builder.nothing_left()
                continue  # an unlucky window: its rows are counted
            tables = [fitted.table()] if packer is None else self._packed(packer, fitted)
            if builder.stats is not None:
                stats = DatasetStats.from_dict(builder.stats.as_dict())
                shown = [_without_sources(row) for table in tables for row in rows_of(table.slice(0, SHOWN))][:SHOWN]
                known = stats, Counter(counts.by_split[SPLIT]), shown
                self.first, builder.stats = FirstWindow(*known, list(builder.dropped.rows)), None
            yield position, tables

    def _packed(self, packer: Packer, examples: Examples) -> list[pa.Table]:
        made_by = self._plugins.responsible("make_packer")
        tables = packed(packer, examples, self._config.data.max_length, made_by)
        return [table for table in tables if len(table)]


def _without_sources(row: dict[str, Any]) -> dict[str, Any]:
    return {name: values for name, values in row.items() if name != SOURCES}


def _numbered(parts: list[Examples]) -> list[Examples]:
    """The examples of each source, with its number."""
    import numpy as np

    return [
        dataclasses.replace(part, sources_S=np.full(len(part.ids_S), number, np.int16))
        for number, part in enumerate(parts)
    ]
