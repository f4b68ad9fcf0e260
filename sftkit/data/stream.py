"""Training data that is never complete: read, formatted, encoded and packed window by window during the run."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from torch.utils.data import IterableDataset

from sftkit.config.train_fields import data_seed
from sftkit.data import cache
from sftkit.data.build import BATCH, MEDIA_BATCH, UNREADABLE, ExampleBuilder, RowBatch, several_types
from sftkit.data.columns import ATTACHED, Examples, flatten_column
from sftkit.data.identity import parts_of
from sftkit.data.length import fit_length
from sftkit.data.media import has_media, undecoded
from sftkit.data.packs import packed
from sftkit.data.reading import PLACE, report_of
from sftkit.data.report import Report
from sftkit.data.shapes import feature_of, kind_of_value, merged, shape_of
from sftkit.data.sources import StreamSource
from sftkit.data.stats import DatasetStats
from sftkit.data.threads import thread_ahead
from sftkit.errors import DataError, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa
    from datasets import Features
    from transformers import PreTrainedTokenizerBase

    from sftkit.config import RunConfig
    from sftkit.data.counts import Counts
    from sftkit.plugin.selected import PluginSet

SPLIT = "train"
SKIPPED: dict[str, Any] = {}  # in place of a row before the window that was sought
Position = dict[str, Any]
FIRST_ROWS = 100  # rows that determine the columns of a stream
KEPT_PLACES = 2  # batches before the newest whose files and lines are kept: one is tokenized while the next is read


class FirstWindow(NamedTuple):
    """What the first window of a stream tells about all of it.

    Attributes:
        stats: statistics of the examples that were made for it.
        counts: what was done to their rows.
    """

    stats: DatasetStats
    counts: Counter[str]


class Stream(IterableDataset):
    """Rows ready for the collator, without an end: a source that is used up starts again, in another order.

    Each iteration gives the same rows in the same order. Each process reads its own share of the rows. An iteration
    after `seek` gives `SKIPPED` in place of the rows before a window, which are neither tokenized nor packed again.

    Args:
        sources: the sources, with weights; a window takes rows from each in proportion, drawn with the run's seed.
        tokenizer: the run's tokenizer, with its chat template.
        config: the run as resolved.
        plugins: the selected plugins.
        processor: the processor that the tokenizer belongs to, if there is one.
        rank: the number of this process.
        world_size: the number of processes.

    Attributes:
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
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._sources, self._tokenizer, self._config, self._plugins = sources, tokenizer, config, plugins
        self._processor, self._rank, self._world_size = processor, rank, world_size
        self._seed = data_seed(config)
        self._builder = self._new_builder()
        self.first: FirstWindow | None = None
        parts = parts_of(SPLIT, [source for source, _ in sources], tokenizer, config, plugins, processor)
        seeds = {"seed": self._seed, "weights": [weight for _, weight in sources], "world": world_size}
        self.fingerprint = cache.key_of({**parts, **seeds})
        # An IterableDataset stores its own position, and the thread of an abandoned iteration may still be reading.
        self._reading = threading.Lock()
        self._begun: list[Position] = []  # of the windows that the iteration has given rows of
        self._sought: Position | None = None

    def position(self, given: int) -> Position:
        """Where to continue after ``given`` rows, as plain data for `seek`: the window of the next row."""
        before = [position for position in self._begun if position["given"] <= given]
        self._begun = [*before[-1:], *self._begun[len(before) :]]
        return self._begun[0]

    def seek(self, position: Position) -> None:
        """Let the next iteration start at a window; the rows of the source before it are only read, if at all."""
        self._sought = position

    def _new_builder(self) -> ExampleBuilder:
        return ExampleBuilder(SPLIT, self._tokenizer, self._config, self._plugins, self._processor)

    @property
    def counts(self) -> Counts:
        """What was done to the data since the last iteration began; includes one window that is prepared ahead."""
        return self._builder.counts

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Examples as mappings of numpy arrays, like those of a prepared data set.

        Raises:
            DataError: for a malformed row, or a first window with nothing to train on.
        """
        self._builder = self._new_builder()
        sought, self._sought, self._begun = self._sought, None, []
        given = sought["given"] if sought else 0
        if sought:
            self._builder.counts.by_split[SPLIT] = Counter(sought["counts"])
            yield from itertools.repeat(SKIPPED, given)
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
                    given += len(table)
                    yield from _rows(table)

    def _windows(self, builder: ExampleBuilder, sought: Position | None) -> Iterator[tuple[Position, list[pa.Table]]]:
        """The tables of each window, and what `seek` needs to begin with it."""
        import numpy as np

        config, counts = self._config, builder.counts
        packer = self._plugins.hook.make_packer(split=SPLIT, config=config, counts=counts)
        whole = packer is not None and packer.cuts_documents and config.data.truncation == "keep_start"
        share = (self._rank, self._world_size)
        feeds = [_Feed(source, self._seed + number, share, builder) for number, (source, _) in enumerate(self._sources)]
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
            window = Examples.concatenate(parts)
            if len(feeds) > 1 or config.data.shuffle_buffer:
                window = window.take(random.permutation(len(window)))
            fitted = window if whole else fit_length(window, SPLIT, config.data, counts)
            if not fitted.trained_N.any():
                if self.first is None:
                    raise builder.nothing_left()
                continue  # an unlucky window: its rows are counted
            tables = [fitted.table()] if packer is None else [part for part in packed(packer, fitted) if len(part)]
            if builder.stats is not None:
                stats = DatasetStats.from_dict(builder.stats.as_dict())
                self.first, builder.stats = FirstWindow(stats, Counter(counts.by_split[SPLIT])), None
            yield position, tables


@dataclass
class _Feed:
    """The examples of one source, pass after pass.

    Attributes:
        source: the source.
        seed: seed of its order.
        share: rank and world size.
        builder: makes the examples.
    """

    source: StreamSource
    seed: int
    share: tuple[int, int]
    builder: ExampleBuilder
    _passes: int = 0
    _taken: int = 0  # batches of this pass
    _left: Examples | None = None
    _coming: Iterator[Examples] = field(default_factory=lambda: iter(()))
    _any: bool = True
    _places: dict[int, list[str]] = field(default_factory=dict)

    def take(self, count: int) -> Examples:
        """The next ``count`` examples."""
        import numpy as np

        parts, missing = [], count
        while missing:
            if self._left is None or not len(self._left):
                self._left = self._next()
            some = self._left.take(np.arange(min(missing, len(self._left))))
            self._left = self._left.take(np.arange(len(some), len(self._left)))
            parts.append(some)
            missing -= len(some)
        return Examples.concatenate(parts)

    @property
    def place(self) -> tuple[int, int, int]:
        """The number of the pass, the batches taken from it, and the examples that are left of the last one."""
        return self._passes, self._taken, 0 if self._left is None else len(self._left)

    def seek(self, passes: int, taken: int, left: int) -> None:
        """Go to a `place`. The rows before it are read, and not encoded."""
        import numpy as np

        if not passes:
            return
        self._passes, self._taken = passes - 1, taken - bool(left)
        self._open(skip=self._taken)
        if left:
            self._taken += 1
            self._left = (last := next(self._coming)).take(np.arange(len(last) - left, len(last)))

    def _next(self) -> Examples:
        for examples in self._coming:
            self._taken += 1
            if len(examples):
                self._any = True
                return examples
        if not self._any:
            raise self.builder.nothing_left()
        self._any, self._taken = False, 0
        if self._passes:
            self.builder.counts.add(SPLIT, f"times {self.source.where} began again")
        else:
            self.builder.note(self.source.notes)
        self._open()
        return self._next()

    def _open(self, skip: int = 0) -> None:
        """Begin the next pass, after the given number of batches."""
        report = report_of(self.builder.config.data, self.source.where)
        rows = self.source.load(report)
        columns = rows.features or self._columns()
        if has_media(columns):
            rows = rows.cast(undecoded(columns))
        if self.source.shuffle_buffer:
            rows = rows.shuffle(seed=self.seed, buffer_size=self.source.shuffle_buffer)
        rows.set_epoch(self._passes)
        self._passes += 1
        try:
            formatter = self.builder.make_formatter(columns, self._first)
        except DataError as error:
            raise DataError([*error.problems, *several_types(self._mixed(), self.source.where)]) from error
        batches = self._batches(rows, columns, report, skip)
        self._coming = self.builder.encoded(batches, formatter, self._place, capped=self._passes == 1)

    def _mixed(self) -> dict[str, dict[str, str]]:
        """The columns whose first values are of several types, with the place of the first value of each type."""
        found: dict[str, dict[str, str]] = {}
        rows = self.source.load(report_of(self.builder.config.data, self.source.where)).take(FIRST_ROWS)
        for number, row in enumerate(rows, start=1):
            place = row.pop(PLACE, f"row {number}")
            for name, value in row.items():
                if value is not None:
                    found.setdefault(name, {}).setdefault(kind_of_value(value), place)
        return {name: kinds for name, kinds in found.items() if len(kinds) > 1}

    def _columns(self) -> Features:
        """The columns of a source that does not name them, by its first rows."""
        from datasets import Features

        rows = list(self.source.load(report_of(self.builder.config.data, self.source.where)).take(FIRST_ROWS))
        if not rows:
            raise DataError(Problem("the data has no rows", self.source.where, "use data with at least one row"))
        names = dict.fromkeys(name for row in rows for name in row if name != PLACE)
        return Features({name: feature_of(merged(shape_of(row.get(name)) for row in rows)) for name in names})

    def _first(self) -> dict[str, Any]:
        """The first row, as columns."""
        (row,) = self.source.load(report_of(self.builder.config.data, self.source.where)).take(1)
        return {name: [value] for name, value in row.items() if name != PLACE}

    def _batches(self, rows: Any, columns: Mapping[str, Any], report: Report, skip: int) -> Iterator[RowBatch]:
        import numpy as np
        from datasets.distributed import split_dataset_by_node

        rank, world_size = self.share
        own = split_dataset_by_node(rows, rank, world_size) if world_size > 1 else rows
        start = 0
        try:
            for batch in own.iter(batch_size=MEDIA_BATCH if has_media(columns) else BATCH):
                number = len(next(iter(batch.values())))
                if skip:  # counted before the position was saved
                    skip, start = skip - 1, start + number
                    report.take()
                    continue
                self._count(report)
                if places := batch.pop(PLACE, None):
                    self._places = {**dict([*self._places.items()][-KEPT_PLACES:]), start: places}
                if unknown := [name for name in batch if name not in columns]:
                    what = f"a later row has the column {unknown[0]!r}, which none of the first {FIRST_ROWS} rows has"
                    fix = "add the column to one of the first rows, or remove it"
                    raise DataError(Problem(what, self.source.where, fix))
                self.builder.counts.add(SPLIT, "rows read", number)
                yield np.arange(start, start + number), {name: batch.get(name, [None] * number) for name in columns}
                start += number
            self._count(report)
        except DataError:
            raise
        except Exception as error:  # datasets wraps whatever its readers raise
            cause = str(error.__cause__ or error).splitlines() or [type(error).__name__]
            what = f"cannot read more of the stream: {cause[0]}"
            raise DataError(Problem(what, self.source.where, "fix the data files")) from error

    def _count(self, report: Report) -> None:
        """Count what the reader skipped."""
        bad, notes = report.take()
        self.builder.note(notes)
        if bad:
            self.builder.skip(bad, UNREADABLE, capped=self._passes == 1)

    def _place(self, row: int) -> str:
        for start, places in self._places.items():
            if start <= row < start + len(places):
                return f"{self.source.where}, {places[row - start]}"
        order = "shuffled " if self.source.shuffle_buffer else ""
        return f"{self.source.where}, {order}stream, row {row + 1}"


def _rows(table: pa.Table) -> Iterator[dict[str, Any]]:
    columns = {name: flatten_column(table, name) for name in table.column_names if name != ATTACHED}
    for row in range(len(table)):
        example = {name: values[offsets[row] : offsets[row + 1]] for name, (values, offsets) in columns.items()}
        if ATTACHED in table.column_names:
            example[ATTACHED] = table[ATTACHED][row].as_py()
        yield example
