"""The examples of a source, made by several processes: each job is one batch of rows, and any executor can run it.

A job and its worker can be pickled, and need no file of the process that sends them, so that they can also run on
another machine. The examples come in the order of the data and in the same pieces as without jobs, whatever the number
of workers is.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import pickle
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftkit.data.batches import parts_of
from sftkit.data.build import SHOWN, ExampleBuilder
from sftkit.data.columns import Examples
from sftkit.data.counts import Counts
from sftkit.data.documents import Formatter
from sftkit.data.dropped import DroppedRow
from sftkit.data.media import read_rows
from sftkit.data.pool import Pool
from sftkit.data.sources import DataSource
from sftkit.data.stats import DatasetStats
from sftkit.data.tokenizing.proof import Difference
from sftkit.data.tokenizing.proven import ProvenEngine
from sftkit.data.tokenizing.use import Use, UseOf, no_engine
from sftkit.errors import SftkitError

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, Features
    from transformers import PreTrainedTokenizerBase

    from sftkit.config import RunConfig

logger = logging.getLogger("sftkit")


@dataclass(frozen=True)
class Job:
    """The work on one batch of rows.

    Attributes:
        rows: the rows, as an Arrow IPC stream.
        features: how they are stored.
        numbers: the number of each row in its source.
        sources: the number of the source of each row; None if there is only one source.
        all_compared: whether all texts are tokenized by `tokenizers` too, and compared.
    """

    rows: bytes
    features: Features
    numbers: np.ndarray
    sources: np.ndarray | None
    all_compared: bool

    @classmethod
    def of(
        cls,
        rows: Dataset,
        at: slice | np.ndarray,
        numbers: np.ndarray,
        sources: np.ndarray | None,
        all_compared: bool = False,
    ) -> Job:
        """The job of some rows of a data set."""
        import pyarrow as pa

        table = rows.with_format("arrow")[at]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return cls(sink.getvalue().to_pybytes(), rows.features, numbers, sources, all_compared)

    def columns(self) -> dict[str, Any]:
        """The rows as columns of Python values."""
        import pyarrow as pa
        from datasets import Dataset, DatasetInfo

        table = pa.ipc.open_stream(pa.py_buffer(self.rows)).read_all()
        return read_rows(Dataset(table, DatasetInfo(features=self.features), fingerprint="job"), slice(None))


@dataclass(frozen=True)
class Done:
    """What a job has made.

    Attributes:
        parts: the examples, in pieces.
        counts: what was done to the rows.
        stats: statistics of the examples.
        trained: trained tokens, before anything was cut.
        skipped: the number of each skipped row in its source, with what is wrong with it.
        first_row: the first row, for error messages.
        dropped: some of the rows that were dropped; numbers take the place of file and line.
        tokenizing: the number of texts that an engine has tokenized, and how many of them were compared.
        difference: what the engine has tokenized otherwise than `tokenizers`.
    """

    parts: list[Examples]
    counts: Counts
    stats: DatasetStats | None
    trained: int
    skipped: list[tuple[int, str]]
    first_row: str
    dropped: list[DroppedRow]
    tokenizing: Counter[str]
    difference: Difference | None


@dataclass(frozen=True)
class Worker:
    """Makes the examples of the jobs of one source; called with a job, in whichever process.

    Attributes:
        split: the split.
        tokenizer: the run's tokenizer.
        config: the run as resolved.
        formatter: formats the rows of the source.
        made_by: the plugin and the hook that made the formatter.
        engine: tokenizes; None for `tokenizers`.
    """

    split: str
    tokenizer: PreTrainedTokenizerBase
    config: RunConfig
    formatter: Formatter
    made_by: str
    engine: ProvenEngine | None

    def __call__(self, job: Job) -> Done:
        """Run a job.

        Raises:
            DataError: for a malformed row, whose number in its source takes the place of file and line.
        """
        import numpy as np

        skipped: list[tuple[int, str]] = []
        builder = ExampleBuilder(
            self.split, self.tokenizer, self.config, ahead=0, skipped=skipped, made_by=self.made_by
        )
        order = {number: at for at, number in enumerate(job.numbers.tolist())}

        def sources_of(rows_N: np.ndarray) -> np.ndarray:  # noqa: N803 (a shape)
            assert job.sources is not None
            return job.sources[np.fromiter((order[number] for number in rows_N.tolist()), np.int64, len(rows_N))]

        batches = [(job.numbers, job.columns())]
        named = None if job.sources is None else sources_of
        use = Use(self.engine, job.all_compared)
        encoded = builder.encoded(batches, self.formatter, lambda row: f"row {row + 1}", named=named, use=lambda _: use)
        parts = [examples for _, examples in encoded]
        found = parts, builder.counts, builder.stats, builder.trained, skipped, builder.first_row
        return Done(
            *found, builder.dropped.rows, builder.tokenizing, None if self.engine is None else self.engine.difference
        )

    @functools.cached_property
    def _pickled(self) -> bytes:
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return pickle.dumps(values)

    def __reduce__(self) -> Any:
        """As bytes, which are pickled once for all jobs, and read once in each process that runs some."""
        return _worker_of, (self._pickled,)


@functools.lru_cache(maxsize=2)
def _worker_of(pickled: bytes) -> Worker:
    return Worker(**pickle.loads(pickled))


def examples_in(pool: Pool, builder: ExampleBuilder, source: DataSource, first: int | None) -> Iterator[Examples]:
    """As `ExampleBuilder.examples`, made by the workers of a pool.

    Args:
        pool: the workers.
        builder: gets the counts and statistics.
        source: the source.
        first: the number of the first of its names among those of all sources; None if there is only one.

    Raises:
        DataError: for a malformed row, the first one of the data.
        RunError: if a worker dies.
    """
    read, picked, formatter = builder.begin(source)
    use = no_engine if formatter.tokenized else builder.use_of(len(read.rows) if picked is None else len(picked))
    engine = use(0).engine
    worker = Worker(builder.split, builder.tokenizer, builder.config, formatter, builder.made_by, engine)
    for job, done in pool.in_order(worker, _jobs(read.rows, picked, source, first, use)):
        if isinstance(done, SftkitError):
            _fail_here(builder, formatter, source, job)
            raise done
        for number, what in done.skipped[: max(SHOWN - builder.bad_rows, 0)]:
            logger.warning("skipped a bad row: %s: %s", source.place(number), what)
        if engine is not None and done.difference is not None:
            engine.refuted(done.difference)
        _add(builder, done, source)
        yield from done.parts


def _add(builder: ExampleBuilder, done: Done, source: DataSource) -> None:
    """Add what a worker has counted, of the rows after those before.

    Raises:
        DataError: if more rows were skipped than ``data.max_bad_rows``.
    """
    builder.note(done.counts.by_split.get(builder.split, {}))
    builder.counts.merge_sources(done.counts)
    builder.dropped.extend(each._replace(place=source.place(each.number)) for each in done.dropped)
    if builder.stats is not None and done.stats is not None:
        builder.stats.merge(done.stats)
    builder.trained += done.trained
    builder.tokenizing.update(done.tokenizing)
    builder.first_row = builder.first_row or done.first_row
    builder.bad_rows += len(done.skipped)
    builder.check_bad_rows()


def _jobs(rows: Dataset, picked: np.ndarray | None, source: DataSource, first: int | None, use: UseOf) -> Iterator[Job]:
    before = 0
    for part, at, numbers in parts_of(rows, picked):
        named = None if first is None else first + source.named(numbers)
        yield Job.of(part, at, numbers, named, use(before).all_compared)
        before += len(numbers)


def _fail_here(builder: ExampleBuilder, formatter: Formatter, source: DataSource, job: Job) -> None:
    """Run a job that has failed in this process, where files and lines are known.

    Raises:
        DataError: as the job did, with the place of the row.
    """
    again = ExampleBuilder(builder.split, builder.tokenizer, builder.config, ahead=0, skipped=[])
    again.bad_rows, again.made_by = builder.bad_rows, builder.made_by
    for _ in again.encoded([(job.numbers, job.columns())], formatter, source.place):
        pass
