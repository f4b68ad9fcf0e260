"""The first rows of a split, made before all of its data is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sftkit.data.counts import Counts
from sftkit.errors import SftkitError

if TYPE_CHECKING:
    from sftkit.data.columns import Examples
    from sftkit.data.sources import StreamSource
    from sftkit.run.rows import TokenRow
    from sftkit.run.stages import PreparedRun, Stages, Vocabulary
    from sftkit.training.collate import CheckedCollator

MOST = 2000  # rows that are made one by one; later ones are sooner found in prepared data


@dataclass(frozen=True)
class FirstRows:
    """A request for rows of a split as soon as they can be made.

    Attributes:
        split: ``train``, or the name of an evaluation set.
        first: the number of the first row, from 0.
        number: how many rows.
        show: called with the rows as one batch, and whether they are those of the prepared split. If they are not, they
            are documents before a packer or a filter has seen all of the data. It is not called if the split is
            prepared already, or if its rows cannot be known before all data is read, such as those of a mixture.
    """

    split: str
    first: int
    number: int
    show: Callable[[list[TokenRow], bool], None]

    def prepare(self, stages: Stages, then: Callable[[], Any]) -> PreparedRun:
        """Prepare a run, and show the rows on the way.

        Args:
            stages: those of the run.
            then: called after the rows were shown, before the data is prepared.
        """

        def begun(vocabulary: Vocabulary, collator: CheckedCollator) -> None:
            _show_first(stages, vocabulary, collator, self)
            then()

        return stages.prepare(begun)


def _show_first(stages: Stages, vocabulary: Vocabulary, collator: CheckedCollator, wanted: FirstRows) -> None:
    """Read rows from the start of a split's files, and show them. A problem is left to the preparation of all rows."""
    from sftkit.data.sources import source_from_start
    from sftkit.run.rows import read_batch

    config, inputs = stages.config, stages.inputs
    given = inputs.train if wanted.split == "train" else inputs.eval
    if given is not None or config.data.prepared is not None or (config.data.streaming and wanted.split == "train"):
        return
    if wanted.first + wanted.number > MOST:
        return
    try:
        source = source_from_start(config, wanted.split)
        if source is None:
            return
        final = _are_final(stages, wanted.split)
        if not _is_new(source) and (not final or _is_prepared(stages, vocabulary, wanted.split)):
            return
        examples = _examples(stages, vocabulary, source, wanted)
        read = read_batch(examples, collator, vocabulary.tokenizer, wanted.first) if examples else []
    except SftkitError:
        return
    if read:
        wanted.show(read, final)


def _are_final(stages: Stages, split: str) -> bool:
    """Whether rows stay as they are when the others are known: there is no packer, and no filter of this split."""
    hook = stages.plugins.hook
    if split == "train" and hook.filter_rows.get_hookimpls():
        return False
    return hook.make_packer(split=split, config=stages.config, counts=Counts()) is None


def _is_new(source: StreamSource) -> bool:
    """Whether a file of the source was never read as it is now."""
    from sftkit.data.contents import was_read

    return not all(was_read(Path(name)) for name, *_ in source.identity.get("files", []))


def _is_prepared(stages: Stages, vocabulary: Vocabulary, split: str) -> bool:
    """Whether the split is in the cache."""
    from sftkit.data import cache
    from sftkit.data.identity import parts_of
    from sftkit.data.sources import load_sources

    config = stages.config
    sources = load_sources(config)[split]
    parts = parts_of(split, sources, vocabulary.tokenizer, config, stages.plugins, vocabulary.processor)
    return config.data.cache and cache.has(cache.key_of(parts))


def _examples(stages: Stages, vocabulary: Vocabulary, source: StreamSource, wanted: FirstRows) -> list[dict[str, Any]]:
    """The examples of the first rows, cut to length, as the collator takes them."""
    from sftkit.data.build import ExampleBuilder
    from sftkit.data.columns import rows_of
    from sftkit.data.feed import Feed
    from sftkit.data.length import fit_length

    config = stages.config
    arguments = (vocabulary.tokenizer, config, stages.plugins, vocabulary.processor)
    builder = ExampleBuilder(wanted.split, *arguments, stats=None, skipped=[])
    feed, found = Feed(source, 0, (0, 1), builder), list[dict[str, Any]]()
    while len(found) < wanted.first + wanted.number:
        example: Examples = feed.take(1)
        if feed.place[0] > 1:  # the source has no more, and begins again
            break
        fitted = fit_length(example, wanted.split, config.data, builder.counts)
        found += rows_of(fitted.table())
    return found[wanted.first :]
