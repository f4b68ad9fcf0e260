"""The filters of a run: which rows of the training data are kept, decided in one pass over all of them."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sftkit.data.batches import batches
from sftkit.data.documents import Columns, RowFilter
from sftkit.data.dropped import DroppedRow, DroppedRows, row_text
from sftkit.data.filters import NamedFilter, kept_of
from sftkit.data.problems import dropped_by
from sftkit.data.sources import DataSource, Filtered, named_source, source_labels
from sftkit.errors import ConfigError, DataError, Problem, RunError

if TYPE_CHECKING:
    import numpy as np
    from datasets import Features

    from sftkit.config import RunConfig
    from sftkit.plugin.selected import PluginSet
FIX = "set data.streaming=false, or filter the data before"
KEPT, ABSENT = -1, -2  # in place of the number of a filter


@dataclass
class RowFilters:
    """The filters of a run, made once, when the first training rows are read.

    Attributes:
        plugins: the selected plugins.
        config: the run as resolved.
    """

    plugins: PluginSet
    config: RunConfig
    _made: list[NamedFilter] | None = None

    def __bool__(self) -> bool:
        return bool(self.plugins.hook.filter_rows.get_hookimpls())

    def of(self, sources: Iterable[Features]) -> list[NamedFilter]:
        """The filters of each plugin that has one, in the order of the plugins.

        Args:
            sources: the columns of each source; needed for the first call alone.

        Raises:
            RunError: if a plugin returned something else.
        """
        if self._made is None:
            from datasets import Features

            columns: dict[str, Any] = {}
            for each in sources:
                columns = {**each, **columns}
            made = self.plugins.hook.filter_rows(columns=Features(columns), config=self.config)
            self._made = [NamedFilter(name, each) for name, each in made if each is not None]
            for each in self._made:
                if not isinstance(each.filter, RowFilter):
                    what = f"the hook returned {type(each.filter).__name__}"
                    raise RunError(Problem(what, each.where, "return a RowFilter, or None"))
        return self._made

    def of_stream(self, sources: Iterable[Features], held_out: Mapping[str, list[DataSource]]) -> list[NamedFilter]:
        """The filters for rows that come again and again; they have seen the evaluation sets.

        Args:
            sources: as of `of`.
            held_out: the evaluation sets.

        Raises:
            ConfigError: if a filter remembers rows.
        """
        if self._made is None and self:
            what = "the filter remembers rows, and a stream resumes at any row and repeats them"
            made = self.of(sources)
            if problems := [Problem(what, each.where, FIX) for each in made if each.filter.remembers]:
                raise ConfigError(problems)
            _show([each for each in made if each.filter.reads_held_out], held_out)
            made.sort(key=lambda each: each.filter.reads_held_out)
        return self._made or []

    def applied(
        self, sources: list[DataSource], held_out: Mapping[str, list[DataSource]] | None = None
    ) -> list[DataSource]:
        """The sources without the rows that filters drop.

        Args:
            sources: all sources of the training data.
            held_out: the evaluation sets, for the filters that read them; None is for the other filters.
        """
        if not self or not sources:
            return sources

        @functools.cache
        def outcomes() -> list[Filtered]:
            filters = [
                each
                for each in self.of(source.load().columns for source in sources)
                if each.filter.reads_held_out == (held_out is not None)
            ]
            _show(filters, held_out or {})
            return _Pass(sources, filters).run() if filters else [Filtered() for _ in sources]

        return [_filtered(source, functools.partial(_at, outcomes, at), held_out) for at, source in enumerate(sources)]


def _at(outcomes: Callable[[], list[Filtered]], at: int) -> Filtered:
    return outcomes()[at]


def _show(filters: Sequence[NamedFilter], held_out: Mapping[str, list[DataSource]]) -> None:
    """Show the evaluation sets to filters."""
    for split, sources in held_out.items() if filters else ():
        for source in sources:
            read = source.load()
            for _, columns in batches(read.rows, source.pick(len(read.rows)) if source.pick else None):
                for each in filters:
                    each.see_held_out(split, columns)


def _filtered(
    source: DataSource, outcome: Callable[[], Filtered], held_out: Mapping[str, list[DataSource]] | None
) -> DataSource:
    def pick(number: int) -> np.ndarray:
        import numpy as np

        numbers = np.arange(number) if source.pick is None else source.pick(number)
        kept = outcome().kept
        return numbers if kept is None else numbers[kept[numbers]]

    def identify() -> Any:
        if not held_out:
            return source.identity
        sets = {split: [each.identity for each in sources] for split, sources in held_out.items()}
        return {"of": source.identity, "filtered with": sets}

    return dataclasses.replace(source, identify=identify, pick=pick, filtered=(*source.filtered, outcome))


@dataclass
class _Pass:
    """One pass of filters over all rows. A filter gets those that the filters before it keep."""

    sources: list[DataSource]
    filters: list[NamedFilter]
    _by: list[np.ndarray] = field(default_factory=list)  # the filter that drops each row of each source, or KEPT
    _repeats: list[tuple[int, int, int, int]] = field(default_factory=list)  # source, its dropped row, filter, earlier

    def run(self) -> list[Filtered]:
        """What is kept of each source.

        Raises:
            DataError: if no row of a source is left.
        """
        labels = source_labels(self.sources)
        firsts = [sum(len(source.names) for source in self.sources[:at]) for at in range(len(self.sources))]
        found = []
        for at, first in enumerate(firsts):
            names = labels[first : first + len(self.sources[at].names)] if len(labels) > 1 else []
            found.append(self._source(at, names))
        for at, row, number, earlier in self._repeats:
            dropped = found[at].dropped
            place = self._place(number, earlier)
            repeated = f"repeats {place}"
            detail = "; ".join(each for each in (dropped[row].detail, repeated) if each)
            dropped[row] = dropped[row]._replace(detail=detail)
        return found

    def _source(self, at: int, names: Sequence[str]) -> Filtered:
        import numpy as np

        source, read = self.sources[at], self.sources[at].load()
        numbers = None if source.pick is None else np.unique(source.pick(len(read.rows)))
        by = np.full(len(read.rows), KEPT if numbers is None else ABSENT, np.int8)
        if numbers is not None:
            by[numbers] = KEPT
        self._by.append(by)
        counts: Counter[str] = Counter()
        dropped = DroppedRows()
        for some, columns in batches(read.rows, numbers):
            for number, each in enumerate(self.filters):
                decided = each(columns, len(some)) if len(some) else []
                gone = [(index, why) for index, why in enumerate(decided) if why is not None]
                if not gone:
                    continue
                rows = some[[index for index, _ in gone]]
                by[rows] = number
                of = source.named(rows) if names else None
                for (index, why), row, name in zip(gone, rows.tolist(), rows if of is None else of, strict=True):
                    what = dropped_by(each.plugin, why.reason, names[name] if names else "")
                    counts[what] += 1
                    text = functools.partial(row_text, columns, index)
                    if dropped.add(row, source.place, what, why.detail, text) and why.earlier is not None:
                        self._repeats.append((at, len(dropped.rows) - 1, number, why.earlier))
                some, columns = kept_of(some, columns, decided)
        if counts and not (by == KEPT).any():
            raise self._nothing_left(source, by, counts, dropped.rows)
        return Filtered(by == KEPT, counts, dropped.rows)

    def _place(self, number: int, earlier: int) -> str:
        """The place of a row, by its number among those that a filter has got."""
        import numpy as np

        for source, by in zip(self.sources, self._by, strict=True):
            given = np.flatnonzero((by == KEPT) | (by >= number))
            if earlier < len(given):
                return source.place(int(given[earlier]))
            earlier -= len(given)
        raise AssertionError("a filter has got more rows than there are")

    def _nothing_left(
        self, source: DataSource, by: np.ndarray, counts: Counter[str], dropped: Sequence[DroppedRow]
    ) -> DataError:
        import numpy as np

        worst = self.filters[int(np.argmax(np.bincount(by[by >= 0], minlength=len(self.filters))))]
        reasons = "; ".join(f"{number:,} {what}" for what, number in counts.items())
        first = f"; the first one: {dropped[0].place}" + (f" ({dropped[0].detail})" if dropped[0].detail else "")
        name = f" of {', '.join(source.names)}" if any(source.names) else ""
        what = f"no row{name} is left: {reasons}{first}"
        fix = "look at the options of the plugin, or at the data"
        return DataError(Problem(what, f"{worst.where}, {source.where}", fix))


def data_batches(names: str | Sequence[str], config: RunConfig, where: str) -> Iterator[Columns]:
    """The rows of data that an option of a plugin names, in batches, as those of an evaluation set.

    Args:
        names: a file, directory, pattern, URL or data set of the hub, or a list of files.
        config: the run as resolved; ``config.data`` says what happens to lines that cannot be read.
        where: the option, for errors.

    Raises:
        DataError: if it cannot be read.
    """
    listed = names if isinstance(names, str) else list(names)
    for _, columns in batches(named_source(listed, None, config.data, where).load().rows, None):
        yield columns
