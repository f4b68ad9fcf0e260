"""Rows to examples, one batch at a time: format, encode, and drop what cannot be trained."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from sftkit.data.batches import RowBatch, batches
from sftkit.data.columns import Examples
from sftkit.data.counts import Counts
from sftkit.data.documents import (
    Document,
    DocumentWithAttachment,
    Formatter,
    Outcome,
    RowError,
    document_text,
    find_invalid_text,
)
from sftkit.data.dropped import DroppedRows, row_text
from sftkit.data.encode import AHEAD, NumberedDocuments, encode_stream
from sftkit.data.length import check_length, check_uncut, drop_untrained, lost
from sftkit.data.media import read_rows
from sftkit.data.outcomes import Wrong, kept_documents, wrong_ids, wrong_outcomes, wrong_state
from sftkit.data.problems import nothing_left, several_types
from sftkit.data.reading import Read
from sftkit.data.sources import DataSource
from sftkit.data.stats import DatasetStats
from sftkit.data.tokenizing.use import EngineOfRun, UseOf, no_engine
from sftkit.data.tokens import token_stream
from sftkit.errors import OF_ONE_PROCESS, ConfigError, DataError, Problem

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from datasets import Features
    from transformers import PreTrainedTokenizerBase

    from sftkit.config import RunConfig
    from sftkit.plugin.selected import PluginSet

logger = logging.getLogger(OF_ONE_PROCESS)

WEIGHTED_TOKENS = "trained tokens with a weight other than 1"
WITH_EOS = "text already ends with EOS, so none is added"
BAD = "bad rows skipped"
UNREADABLE = "unreadable lines skipped"
SHOWN = 3  # skipped rows that are logged one by one

Place = Callable[[int], str]
"""Describes where the row of a number is, for error messages."""
NamedRows = Callable[["np.ndarray"], "np.ndarray"]
"""The numbers of the sources of rows, given their own numbers."""


@dataclass
class ExampleBuilder:
    """Makes the examples of one split and counts what happens to its rows.

    Args:
        plugins: the selected plugins; None in a worker, which gets its formatter.
        processor: the processor that the tokenizer belongs to, if there is one.
        stats: statistics of the examples; None to compute none, as after the first window of a stream.
        columns: the columns of each source that was formatted, with their types, as `datasets.Features.to_dict`.
        ahead: pieces that a thread tokenizes while one is processed; 0 for no thread.
        trained: trained tokens, before anything was cut.
        bad_rows: the number of rows and lines skipped so far.
        skipped: gets the number of each skipped row and what is wrong with it, instead of the log.
        first_row: the first row, for error messages.
        made_by: the plugin and the hook that made the formatter.
        dropped: some of the rows that were dropped, and why.
        engine: tokenizes if there are enough rows; None for none.
        tokenizing: the number of texts that the engine has tokenized, and how many of them were compared.
    """

    split: str
    tokenizer: PreTrainedTokenizerBase
    config: RunConfig
    plugins: PluginSet | None = None
    processor: Any = None
    counts: Counts = field(default_factory=Counts)
    stats: DatasetStats | None = field(default_factory=DatasetStats)
    columns: list[dict[str, Any]] = field(default_factory=list)
    ahead: int = AHEAD
    trained: int = 0
    bad_rows: int = 0
    skipped: list[tuple[int, str]] | None = None
    first_row: str = ""
    made_by: str = "the formatter"
    dropped: DroppedRows = field(default_factory=DroppedRows)
    engine: EngineOfRun | None = None
    tokenizing: Counter[str] = field(default_factory=Counter)
    _tried: bool = False
    _special: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        self._special = frozenset({*self.tokenizer.added_tokens_decoder, *self.tokenizer.all_special_ids})

    def examples(self, source: DataSource, first: int | None = None) -> Iterator[Examples]:
        """The examples of a source that have a trained token, batch by batch, before they are cut to length.

        Args:
            source: the source.
            first: the number of the first of its names among those of all sources; None if there is only one.

        Raises:
            DataError: for a malformed row, or a source without rows.
        """
        read, picked, formatter = self.begin(source)
        named = None if first is None else lambda rows: first + source.named(rows)
        use = self.use_of(len(read.rows) if picked is None else len(picked))
        encoded = self.encoded(batches(read.rows, picked), formatter, source.place, named=named, use=use)
        return (examples for _, examples in encoded)

    def begin(self, source: DataSource) -> tuple[Read, np.ndarray | None, Formatter]:
        """A source's rows, the numbers of those to use (None for all), and their formatter; what was read is counted.

        Raises:
            DataError: for a source without rows, or one that cannot be read.
        """
        read = source.load()
        self.note({**source.notes, **read.notes})
        if read.bad:
            self.skip(read.bad, UNREADABLE)
        if not len(read.rows):
            raise DataError(Problem("the data has no rows", source.where, "use data with at least one row"))
        picked = source.pick(len(read.rows)) if source.pick else None
        number = len(read.rows) if picked is None else len(picked)
        filtered = [outcome() for outcome in source.filtered]
        self.counts.add(self.split, "rows read", number + sum(sum(each.counts.values()) for each in filtered))
        for each in filtered:
            self.note(each.counts)
            self.dropped.extend(each.dropped)
        return read, picked, self._formatter_of(read, source)

    def note(self, notes: Mapping[str, int]) -> None:
        """Count what the user should know about a source."""
        for what, number in notes.items():
            self.counts.add(self.split, what, number)

    def encoded(
        self,
        rows: Iterable[RowBatch],
        formatter: Formatter,
        place: Place,
        capped: bool = True,
        named: NamedRows | None = None,
        use: UseOf = no_engine,
    ) -> Iterator[tuple[int, Examples]]:
        """The examples of batches of rows, in one or more pieces for each batch, with the number of the batch.

        Args:
            rows: the batches.
            formatter: of these rows.
            place: describes where a row is.
            capped: whether ``data.max_bad_rows`` limits their bad rows; false where a stream repeats them.
            named: the number of the source of each row, given the numbers of rows; None if there is one source.
            use: how the texts are tokenized.
        """
        import numpy as np

        documents = (
            self._documents(batch, formatter, place, capped, named)._replace(batch=number, before=before)
            for number, (before, batch) in enumerate(_counted(rows))
        )
        rendered = formatter.rendered_special_tokens
        special_tokens = self.config.data.special_tokens if formatter.adds_special_tokens else rendered
        labelled = (
            token_stream(documents)
            if formatter.tokenized
            else encode_stream(documents, self.tokenizer, special_tokens, self.ahead, use)
        )
        for source, (examples, with_eos, tokenizing) in labelled:
            if formatter.tokenized and (wrong := wrong_ids(examples, len(self.tokenizer))):
                self._fail(wrong)
            self.tokenizing.update(tokenizing)
            if with_eos:
                self.counts.note(self.split, WITH_EOS, with_eos)
            self._check_length(examples, source, formatter, place)
            if formatter.attached_type is not None:
                attached_N = self._attachments(source.documents, formatter.attached_type)  # noqa: N806 (a shape)
                examples = dataclasses.replace(examples, attached_N=attached_N)
            source_N = None if named is None else named(np.asarray(source.numbers, np.int64)).astype(np.int16)  # noqa: N806
            if source_N is not None:
                examples = dataclasses.replace(examples, sources_S=np.repeat(source_N, examples.lengths_N))
            self._count(examples, rendered=not formatter.adds_special_tokens)
            yield source.batch, drop_untrained(examples, self.split, self.counts, source_N)

    def use_of(self, rows: int | None) -> UseOf:
        """How the texts of a source with this many rows (None: not known) are tokenized."""
        return no_engine if self.engine is None else self.engine.of(rows)

    def nothing_left(self) -> DataError:
        """The error for a split without examples, with the reasons and the first row."""
        limit = self.config.data.max_length
        return nothing_left(
            self.split, self.counts.by_split[self.split], self.trained, limit, self.first_row, self.made_by
        )

    def _formatter_of(self, read: Read, source: DataSource) -> Formatter:
        try:
            return self.make_formatter(read.columns, lambda: read_rows(read.rows, slice(1)))
        except DataError as error:
            mixed = {
                name: {kind: read.place(row) for kind, row in firsts.items()} for name, firsts in read.mixed.items()
            }
            raise DataError([*error.problems, *several_types(mixed, source.where)]) from error

    def make_formatter(self, columns: Features, first: Callable[[], Mapping[str, Any]]) -> Formatter:
        """The formatter of rows with these columns.

        Args:
            columns: what their values are.
            first: reads the first row, as columns; called for an error that shows it.

        Raises:
            ConfigError: if no plugin formats them, or options of a plugin do not fit them.
        """
        assert self.plugins is not None, "a worker gets its formatter"
        try:
            formatter = self.plugins.hook.make_formatter(
                columns=columns, tokenizer=self.tokenizer, processor=self.processor, config=self.config
            )
        except ConfigError as error:
            *others, last = error.problems
            what = f"{last.what}; the first row is {row_text(first())!r}"
            raise ConfigError([*others, dataclasses.replace(last, what=what)]) from error
        if formatter is None:
            fix = "select a plugin that formats them, or keep the default plugins"
            raise ConfigError(Problem(f"no plugin formats the columns {', '.join(columns)}", f"data.{self.split}", fix))
        self.made_by, self._tried = self.plugins.responsible("make_formatter"), False
        if not isinstance(formatter, Formatter):
            self._fail(Wrong(f"it returns an object of type {type(formatter).__name__}", "return a Formatter"))
        if (described := columns.to_dict()) not in self.columns:
            self.columns.append(described)
        return formatter

    def _documents(
        self, batch: RowBatch, formatter: Formatter, place: Place, capped: bool, named: NamedRows | None
    ) -> NumberedDocuments:
        given, columns = batch
        numbers = given
        if not self.first_row and len(numbers):
            self.first_row = row_text(columns)
        numbers, good, formatted = self._format(numbers, columns, formatter, place, capped)
        if formatter.columns_used is not None:
            for name in (name for name in columns if name not in formatter.columns_used):
                if filled := sum(value is not None for value in columns[name]):
                    self.counts.note(self.split, f"column {name} ignored", filled)
        kept = kept_documents(numbers.tolist(), formatted, self.split, self.counts)
        if named is not None:
            bad = Counter(given.tolist()) - Counter(numbers.tolist())
            self._count_by_source([(row, BAD) for row in bad.elements()], named)
            self._count_by_source([(int(numbers[at]), what) for at, what, _ in kept.dropped], named)
        for at, what, detail in kept.dropped:
            self.dropped.add(int(numbers[at]), place, what, detail, partial(row_text, good, at))
        return kept.documents

    def _count_by_source(self, dropped: Sequence[tuple[int, str]], named: NamedRows) -> None:
        """Count rows, each with what has happened to it, to those of their sources."""
        import numpy as np

        sources = named(np.array([row for row, _ in dropped], np.int64)).tolist() if dropped else []
        for source, (_, what) in zip(sources, dropped, strict=True):
            self.counts.add_to_source(self.split, source, what, 1)

    def _format(
        self, numbers: np.ndarray, columns: dict[str, Any], formatter: Formatter, place: Place, capped: bool
    ) -> tuple[np.ndarray, dict[str, Any], list[Outcome]]:
        """The numbers of the rows of a batch, the rows, and what the formatter makes of them.

        A malformed row stops the run, or it is removed from the batch and the batch is formatted again.
        """
        import numpy as np

        while len(numbers):
            try:
                outcomes = formatter(columns)
                wrong = wrong_outcomes(outcomes, len(numbers), formatter)
                if wrong is None and not self._tried:
                    wrong, self._tried = wrong_state(outcomes, columns, formatter), True
                if wrong is not None:
                    self._fail(wrong, place, numbers)
                if (invalid := find_invalid_text(outcomes)) is not None:
                    fix = "fix the text, or remove the row"
                    raise RowError(invalid, "the text has half of a surrogate pair, such as half an emoji", fix)
                return numbers, columns, outcomes
            except RowError as error:
                at, where = error.index, place(int(numbers[error.index]))
                if self.config.data.on_bad_row == "error":
                    fix = "; or ".join([*([error.fix] if error.fix else []), "set data.on_bad_row=skip"])
                    raise DataError(Problem(error.message, where, fix)) from error
                if self.skipped is not None:
                    self.skipped.append((int(numbers[at]), error.message))
                elif capped and self.bad_rows < SHOWN:
                    logger.warning("skipped a bad row: %s: %s", where, error.message)
                self.skip(1, BAD, capped)
                self.dropped.add(int(numbers[at]), place, BAD, error.message, partial(row_text, columns, at))
                numbers = np.delete(numbers, at)
                columns = {name: [*values[:at], *values[at + 1 :]] for name, values in columns.items()}
        return numbers, columns, []

    def _fail(self, wrong: Wrong, place: Place | None = None, numbers: Sequence[int] | np.ndarray = ()) -> NoReturn:
        """Raise a DataError for a mistake of the formatter, in the row of these numbers that it is about."""
        row = "" if wrong.row is None or place is None else f" ({place(int(numbers[wrong.row]))})"
        raise DataError(Problem(f"{wrong.what}{row}", self.made_by, wrong.fix))

    def skip(self, number: int, what: str, capped: bool = True) -> None:
        """Count rows or lines that are skipped.

        Raises:
            DataError: if those that are ``capped`` are more than ``data.max_bad_rows``.
        """
        self.bad_rows += number * capped
        self.counts.add(self.split, what, number)
        self.check_bad_rows()

    def check_bad_rows(self) -> None:
        """Raise a DataError if more rows were skipped than ``data.max_bad_rows``."""
        limit = self.config.data.max_bad_rows
        if self.bad_rows > limit:
            fix = "fix the data, or increase data.max_bad_rows"
            raise DataError(Problem(f"more than {limit} bad rows", f"data.{self.split}", fix))

    def _check_length(self, examples: Examples, source: NumberedDocuments, formatter: Formatter, place: Place) -> None:
        """Raise a DataError for an example that is too long; note those that are dropped because of their length."""

        def place_of(at: int) -> str:
            return place(source.numbers[at])

        check_length(examples, self.config.data, place_of)
        check_uncut(examples, formatter.uncut_ids, self.config.data, place_of)
        for at, what in lost(examples, self.config.data):
            detail = f"{examples.lengths_N[at]} tokens"
            self.dropped.add(source.numbers[at], place, what, detail, partial(document_text, source.documents[at]))

    def _attachments(self, documents: Iterable[Document], kind: Any) -> pa.Array:
        import pyarrow as pa

        values = []
        for document in documents:
            if isinstance(document, DocumentWithAttachment):
                values.append(document.attachment)
                for what, number in document.counts.items():
                    self.counts.add(self.split, what, number)
        return pa.array(values, kind)

    def _count(self, examples: Examples, rendered: bool) -> None:
        self.trained += int(examples.trained_N.sum())
        if self.stats is not None:
            bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
            self.stats.add(examples, bos, eos, self._special, rendered)
        if weighted := examples.weighted:
            self.counts.add(self.split, WEIGHTED_TOKENS, weighted)


def _counted(batches: Iterable[RowBatch]) -> Iterator[tuple[int, RowBatch]]:
    """Batches of rows, each with the number of rows before it."""
    before = 0
    for batch in batches:
        yield before, batch
        before += len(batch[0])
