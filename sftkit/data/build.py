"""Rows to examples, a batch at a time: format, encode, leave out what cannot be trained on."""

from __future__ import annotations

import dataclasses
import logging
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sftkit.data.columns import Examples
from sftkit.data.counts import Counts
from sftkit.data.documents import Attached, Document, Formatter, RowError, Skipped
from sftkit.data.encode import encode_stream
from sftkit.data.length import NOTHING_TRAINED, drop_untrained, find_cut
from sftkit.data.media import has_media, read_rows
from sftkit.data.sources import DataSource
from sftkit.data.stats import DatasetStats
from sftkit.errors import ConfigError, DataError, Problem

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, Features
    from transformers import PreTrainedTokenizerBase

    from sftkit.config import RunConfig
    from sftkit.plugin.selected import PluginSet

logger = logging.getLogger("sftkit")

BATCH = 4000
MEDIA_BATCH = 256  # rows that hold pictures, sounds or films, which may have a megabyte each
WEIGHTED_TOKENS = "trained tokens with another weight than 1"
SHOWN = 3  # bad rows that are skipped and told one by one
#: Rows after which a memory-mapped source is mapped anew, so that the pages that were read are given back.
REMAP = 12 * BATCH

RowBatch = tuple["np.ndarray", dict[str, Any]]
"""The numbers of some rows, and the rows as columns."""


@dataclass
class ExampleBuilder:
    """Makes the examples of one split, and counts what is done on the way.

    Args:
        processor: of models that see more than text; None of the others.
        stats: what is learned of the examples; None where the split has no end.
    """

    split: str
    tokenizer: PreTrainedTokenizerBase
    config: RunConfig
    plugins: PluginSet
    processor: Any = None
    counts: Counts = field(default_factory=Counts)
    stats: DatasetStats | None = field(default_factory=DatasetStats)
    _trained: int = 0
    _bad_rows: int = 0
    _shown: str = ""
    _encoding: deque[tuple[int, Document]] = field(default_factory=deque)
    """The row's number and the document of each example that is not encoded yet."""

    def examples(self, source: DataSource) -> Iterator[Examples]:
        """The examples of a source with something to train on, batch by batch, not yet cut to length.

        Raises:
            DataError: for a row of a bad shape, or a source without rows.
        """
        read = source.load()
        rows = read.rows
        if read.bad_lines:
            self._skip(read.bad_lines, "unreadable lines skipped")
        if not len(rows):
            raise DataError(Problem("the data has no rows", source.where, "give data with rows"))
        picked = source.pick(len(rows)) if source.pick else None
        self.counts.add(self.split, "rows read", len(rows) if picked is None else len(picked))
        return self.encoded(batches(rows, picked), rows.features, source.place)

    def encoded(self, rows: Iterable[RowBatch], columns: Features, place: Callable[[int], str]) -> Iterator[Examples]:
        """The examples of batches of rows with these columns; ``place`` tells where a row is."""
        special = self.tokenizer
        tokens = {"bos": special.bos_token_id, "eos": special.eos_token_id}
        formatter = self._formatter(columns)
        documents = (self._documents(batch, formatter, place) for batch in rows)
        rendered = formatter.rendered_special_tokens
        around = self.config.data.special_tokens if formatter.adds_special_tokens else rendered
        for examples in encode_stream(documents, self.tokenizer, around):
            examples = self._with_attached(examples, formatter, place)
            self._trained += int(examples.trained_N.sum())
            if self.stats is not None:
                attached_N = examples.attached_N  # noqa: N806 (suffixes are shapes)
                self.stats.add(examples.ids_S, examples.labels_S, examples.offsets_N1, attached_N=attached_N, **tokens)
            if weighted := examples.weighted:
                self.counts.add(self.split, WEIGHTED_TOKENS, weighted)
            yield drop_untrained(examples, self.split, self.counts)

    def _with_attached(self, examples: Examples, formatter: Formatter, place: Callable[[int], str]) -> Examples:
        """The examples with what the formatter attached to their documents.

        Raises:
            DataError: for an example that would lose what may not be cut.
        """
        import pyarrow as pa

        here = [self._encoding.popleft() for _ in range(len(examples))]
        data = self.config.data
        if (at := find_cut(examples, formatter.uncut_ids, data)) is not None:
            what = f"data.max_length={data.max_length} would cut into what may not be cut, as a picture"
            what = f"{what}: the example has {examples.lengths_N[at]} tokens"
            fix = "raise data.max_length, make it shorter (smaller or fewer pictures), or set data.truncation=drop"
            raise DataError(Problem(what, place(here[at][0]), fix))
        if formatter.attached_type is None:
            return examples
        documents = [document for _, document in here if isinstance(document, Attached)]
        for document in documents:
            for what, number in document.counts.items():
                self.counts.add(self.split, what, number)
        attached_N = pa.array([document.value for document in documents], formatter.attached_type)  # noqa: N806
        return dataclasses.replace(examples, attached_N=attached_N)

    def nothing_left(self) -> DataError:
        """Why no row is left, with the first one."""
        where, done = f"data.{self.split}", self.counts.by_split[self.split]
        if self._trained:
            fix = "raise data.max_length, or shorten the prompts"
            what = f"no trained token is left within data.max_length={self.config.data.max_length}"
            return DataError(Problem(what, where, fix))
        reasons = [what.removeprefix("rows dropped: ") for what in done if what.startswith("rows dropped: ")]
        masked = ["every label is masked"] if done[NOTHING_TRAINED] else []
        why = "; ".join(reasons + masked) or "every row is empty or bad"
        fix = f"check what is trained (data.loss, the template); the first row is {self._shown!r}"
        return DataError(Problem(f"no row can be trained on: {why}", where, fix))

    def _formatter(self, columns: Features) -> Formatter:
        formatter = self.plugins.hook.make_formatter(
            columns=columns, tokenizer=self.tokenizer, processor=self.processor, config=self.config
        )
        if formatter is None:
            fix = "select a formatter plugin, or drop no:formats"
            raise ConfigError(Problem(f"no plugin formats columns {', '.join(columns)}", f"data.{self.split}", fix))
        return formatter

    def _documents(self, batch: RowBatch, formatter: Formatter, place: Callable[[int], str]) -> list[Document]:
        numbers, columns = batch
        if not self._shown:
            self._shown = str({name: values[0] for name, values in columns.items()})[:400]
        numbers, documents = self._format(numbers, columns, formatter, place)
        for skipped in [document for document in documents if isinstance(document, Skipped)]:
            self.counts.add(self.split, f"rows dropped: {skipped.reason}")
        pairs = zip(numbers.tolist(), documents, strict=True)
        kept = [(number, document) for number, document in pairs if not isinstance(document, Skipped)]
        self._encoding.extend(kept)
        return [document for _, document in kept]

    def _format(
        self, numbers: np.ndarray, columns: dict[str, Any], formatter: Formatter, place: Callable[[int], str]
    ) -> tuple[np.ndarray, list[Document | Skipped]]:
        """The documents of a batch, and the numbers of their rows.

        A row of a bad shape is an error, or taken out and the rest tried again.
        """
        import numpy as np

        while len(numbers):
            try:
                return numbers, formatter(columns)
            except RowError as error:
                at, where = error.index, place(int(numbers[error.index]))
                if self.config.data.on_bad_row == "error":
                    fix = "; or ".join([*([error.fix] if error.fix else []), "set data.on_bad_row=skip"])
                    raise DataError(Problem(error.message, where, fix)) from error
                if self._bad_rows < SHOWN:
                    logger.warning("skipped a bad row: %s: %s", where, error.message)
                self._skip(1, "bad rows skipped")
                numbers = np.delete(numbers, at)
                columns = {name: [*values[:at], *values[at + 1 :]] for name, values in columns.items()}
        return numbers, []

    def _skip(self, number: int, what: str) -> None:
        self._bad_rows += number
        self.counts.add(self.split, what, number)
        limit = self.config.data.max_bad_rows
        if self._bad_rows > limit:
            fix = "mend the data, or raise data.max_bad_rows"
            raise DataError(Problem(f"more than {limit} bad rows", f"data.{self.split}", fix))


def batches(rows: Dataset, picked: np.ndarray | None) -> Iterator[RowBatch]:
    """Rows as columns, some at a time, with their numbers; memory stays flat in the number of rows."""
    import numpy as np

    number = len(rows) if picked is None else len(picked)
    size = MEDIA_BATCH if has_media(rows.features) else BATCH
    mapped = bool(rows.cache_files)
    for start in range(0, number, size):
        if mapped and start and start % REMAP == 0:
            rows = pickle.loads(pickle.dumps(rows))  # pickles the files' names, and maps them anew
        stop = min(start + size, number)
        if picked is None:
            yield np.arange(start, stop), read_rows(rows, slice(start, stop))
        else:
            yield picked[start:stop], read_rows(rows, picked[start:stop])
