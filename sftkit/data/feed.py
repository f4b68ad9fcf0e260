"""The examples of one source of a stream, pass after pass, from any place on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from sftkit.data.batches import BATCH, MEDIA_BATCH, RowBatch
from sftkit.data.build import UNREADABLE, ExampleBuilder
from sftkit.data.columns import Examples
from sftkit.data.dropped import row_text
from sftkit.data.filters import NamedFilter, kept_of
from sftkit.data.media import has_media
from sftkit.data.problems import dropped_by, several_types
from sftkit.data.reading import report_of
from sftkit.data.report import Report
from sftkit.data.shapes import feature_of, kind_of_value, merged, shape_of
from sftkit.data.sources import StreamSource
from sftkit.data.stream_rows import PLACE, At, Pass, Row, Rows, StreamRows, as_columns
from sftkit.errors import DataError, Problem

if TYPE_CHECKING:
    import numpy as np
    from datasets import Features

SPLIT = "train"
FIRST_ROWS = 100  # rows that determine the columns of a stream
KEPT_PLACES = 2  # batches before the newest whose files and lines are kept: one is tokenized while the next is read


class Mark(NamedTuple):
    """Where a batch of rows begins. Rows are read, and shuffled, in blocks of one or more batches.

    Attributes:
        at: where its block begins in the source.
        block: the number of the block in its pass.
        row: the number of the block's first row in the pass.
        batch: the number of the batch in its block.
        limit: how many more lines of the pass may be unreadable, from the block on.
    """

    at: At
    block: int
    row: int
    batch: int
    limit: int


@dataclass
class Feed:
    """The examples of one source, pass after pass.

    Attributes:
        source: the source.
        seed: seed of its order.
        share: rank and world size.
        builder: makes the examples.
        filters: drop rows, each with the name of the source if there are several.
    """

    source: StreamSource
    seed: int
    share: tuple[int, int]
    builder: ExampleBuilder
    filters: Sequence[tuple[NamedFilter, str]] = ()
    _passes: int = 0
    _marks: dict[int, Mark] = field(default_factory=dict)  # of the batch that examples were taken from, and later ones
    _pieces: int = 0  # that were taken from this batch
    _left: Examples | None = None
    _coming: Iterator[tuple[int, Examples]] = field(default_factory=lambda: iter(()))
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
    def place(self) -> tuple[int, list[Any], int, int]:
        """The number of the pass, the batch, the pieces taken from it, and the examples left of the last piece."""
        mark = [*next(iter(self._marks.values()))] if self._passes else []
        return self._passes, mark, self._pieces, 0 if self._left is None else len(self._left)

    def seek(self, passes: int, mark: list[Any], pieces: int, left: int) -> None:
        """Go to a `place`. The batch there is encoded again, and nothing before it."""
        import numpy as np

        if not passes:
            return
        self._passes = passes - 1
        self._open(Mark(*mark))
        for _ in range(pieces):
            last = self._piece()
            assert last is not None, "the source has other rows than before"
            self._left = last.take(np.arange(len(last) - left, len(last)))

    def _piece(self) -> Examples | None:
        """The next piece of this pass; None at its end."""
        number, examples = next(self._coming, (0, None))
        if examples is None:
            return None
        before = [batch for batch in self._marks if batch < number]
        for batch in before:
            del self._marks[batch]
        self._pieces = 1 if before else self._pieces + 1
        return examples

    def _next(self) -> Examples:
        while (examples := self._piece()) is not None:
            if len(examples):
                self._any = True
                return examples
        if not self._any:
            raise self.builder.nothing_left()
        self._any = False
        if self._passes:
            self.builder.counts.add(SPLIT, f"times {self.source.where} began again")
        else:
            self.builder.note(self.source.notes)
        self._open()
        return self._next()

    def _open(self, mark: Mark | None = None) -> None:
        """Begin the next pass, at a batch."""
        report, rows = self._report(), self.source.load()
        columns = self.columns
        self._marks, self._pieces, self._passes = {}, 0, self._passes + 1
        try:
            formatter = self.builder.make_formatter(columns, self._first)
        except DataError as error:
            raise DataError([*error.problems, *several_types(self._mixed(), self.source.where)]) from error
        batches = self._batches(rows, columns, report, mark or Mark([], 0, 0, 0, report.limit))
        use = self.builder.use_of(None)
        self._coming = self.builder.encoded(batches, formatter, self._place, capped=self._passes == 1, use=use)

    def _report(self) -> Report:
        return report_of(self.builder.config.data, self.source.where)

    def _first_rows(self, number: int = FIRST_ROWS) -> list[dict[str, Any]]:
        return [row for _, row in islice(self.source.load().rows(Pass(0, self.seed, 0), self._report(), []), number)]

    def _mixed(self) -> dict[str, dict[str, str]]:
        """The columns whose first values are of several types, with the place of the first value of each type."""
        found: dict[str, dict[str, str]] = {}
        for number, row in enumerate(self._first_rows(), start=1):
            place = row.pop(PLACE, f"row {number}")
            for name, value in row.items():
                if value is not None:
                    found.setdefault(name, {}).setdefault(kind_of_value(value), place)
        return {name: kinds for name, kinds in found.items() if len(kinds) > 1}

    @property
    def columns(self) -> Features:
        """The columns of the source; if it does not name them, by its first rows."""
        from datasets import Features

        if (named := self.source.load().features) is not None:
            return named
        if not (rows := self._first_rows()):
            raise DataError(Problem("the data has no rows", self.source.where, "use data with at least one row"))
        names = dict.fromkeys(name for row in rows for name in row if name != PLACE)
        return Features({name: feature_of(merged(shape_of(row.get(name)) for row in rows)) for name in names})

    def _first(self) -> dict[str, Any]:
        """The first row, as columns."""
        (row,) = self._first_rows(1)
        return {name: [value] for name, value in row.items() if name != PLACE}

    def _batches(self, rows: StreamRows, columns: Features, report: Report, mark: Mark) -> Iterator[RowBatch]:
        """The batches of a pass from a mark on; each is added to the marks."""
        import numpy as np

        size = MEDIA_BATCH if has_media(columns) else BATCH
        buffer = 0 if rows.shuffles else self.source.shuffle_buffer
        block_size = buffer * -(-size // buffer) if buffer else size
        this = Pass(self._passes - 1, self.seed, self.source.shuffle_buffer, *self.share)
        (at, block, row, skip, report.limit), number = mark, 0
        for after, read in self._blocks(rows.rows(this, report, at), block_size):
            limit = report.limit
            if skip:  # counted before the position was saved
                report.take()
            self._count(report)
            if buffer:
                random = np.random.default_rng([self.seed, this.number, block])
                parts = [
                    start + random.permutation(min(buffer, len(read) - start)) for start in range(0, len(read), buffer)
                ]
                read = [read[index] for index in np.concatenate(parts)]
            for batch in range(skip, -(-len(read) // size)):
                self._marks[number] = Mark(at, block, row, batch, limit)
                yield self._batch(row + batch * size, read[batch * size : (batch + 1) * size], columns)
                number += 1
            at, block, row, skip = after, block + 1, row + len(read), 0
        self._count(report)

    def _blocks(self, rows: Rows, size: int) -> Iterator[tuple[At, list[Row]]]:
        """The rows in blocks, each with the place behind it."""
        try:
            while some := list(islice(rows, size)):
                yield some[-1][0], [row for _, row in some]
        except DataError:
            raise
        except Exception as error:  # datasets wraps whatever its readers raise
            cause = str(error.__cause__ or error).splitlines() or [type(error).__name__]
            what = f"cannot read more of the stream: {cause[0]}"
            raise DataError(Problem(what, self.source.where, "fix the data files")) from error

    def _batch(self, start: int, rows: list[Row], columns: Features) -> RowBatch:
        import numpy as np

        found = as_columns(rows, columns)
        if places := found.pop(PLACE, None):
            self._places = {**dict([*self._places.items()][-KEPT_PLACES:]), start: places}
        if unknown := [name for name in found if name not in columns]:
            what = f"a later row has the column {unknown[0]!r}, which none of the first {FIRST_ROWS} rows has"
            fix = "add the column to one of the first rows, or remove it"
            raise DataError(Problem(what, self.source.where, fix))
        self.builder.counts.add(SPLIT, "rows read", len(rows))
        return self._filtered(np.arange(start, start + len(rows)), found)

    def _filtered(self, numbers: np.ndarray, columns: dict[str, Any]) -> RowBatch:
        """The rows of a batch that the filters keep; the others are counted."""
        for each, name in self.filters:
            decided = each(columns, len(numbers)) if len(numbers) else []
            for at, why in enumerate(decided):
                if why is not None:
                    self.builder.counts.add(SPLIT, what := dropped_by(each.plugin, why.reason, name))
                    text = partial(row_text, columns, at)
                    self.builder.dropped.add(int(numbers[at]), self._place, what, why.detail, text)
            numbers, columns = kept_of(numbers, columns, decided)
        return numbers, columns

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
