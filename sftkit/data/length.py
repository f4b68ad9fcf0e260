# ruff: noqa: N803, N806 (suffixes are shapes)
"""Fitting examples into ``data.max_length``; everything that is lost is counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftkit.data.columns import Examples
from sftkit.errors import DataError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np

    from sftkit.config.models import DataSection
    from sftkit.data.counts import Counts

NOTHING_TRAINED = "rows without a trained token dropped"


def fit_length(examples: Examples, split: str, data: DataSection, counts: Counts) -> Examples:
    """Examples of at most ``data.max_length`` tokens, by the policy ``data.truncation``.

    Examples that lose all their trained tokens are dropped. All losses are counted in ``counts``.

    Raises:
        DataError: with the policy ``error``, for the first example that is too long.
    """
    check_length(examples, data, lambda at: f"data.{split}, example {at + 1}")
    limit, lengths_N = data.max_length, examples.lengths_N
    long_N = lengths_N > limit
    if not long_N.any():
        return examples
    if data.truncation == "drop":
        counts.add_each(split, too_long(limit), long_N, examples.source_N)
        return examples.where(~long_N)
    fitted, source_N = examples.cut(limit), examples.source_N
    counts.add_each(split, "rows truncated", long_N, source_N)
    counts.add_each(split, "completions cut", fitted.trained_N < examples.trained_N, source_N)
    counts.add_each(split, "tokens cut", lengths_N - fitted.lengths_N, source_N)
    return drop_untrained(fitted, split, counts, source_N)


def check_length(examples: Examples, data: DataSection, place: Callable[[int], str]) -> None:
    """Refuse examples that are too long, if ``data.truncation`` is ``error``.

    Args:
        place: describes where the example at a position comes from.

    Raises:
        DataError: for the first example that has trained tokens and is too long.
    """
    import numpy as np

    if data.truncation != "error":
        return
    long_N = (examples.lengths_N > data.max_length) & (examples.trained_N > 0)
    if long_N.any():
        at = int(np.argmax(long_N))
        what = f"the example has {examples.lengths_N[at]} tokens, more than data.max_length={data.max_length}"
        raise DataError(
            Problem(what, place(at), "increase data.max_length, or set data.truncation to keep_start or drop")
        )


def check_uncut(examples: Examples, ids: tuple[int, ...], data: DataSection, place: Callable[[int], str]) -> None:
    """Refuse examples that would lose one of these token ids by ``data.truncation``.

    Args:
        place: describes where the example at a position comes from.

    Raises:
        DataError: for the first such example.
    """
    import numpy as np

    if not ids or data.truncation != "keep_start" or not (examples.lengths_N > data.max_length).any():
        return
    place_S = np.arange(len(examples.ids_S)) - np.repeat(examples.offsets_N1[:-1], examples.lengths_N)
    cut = np.flatnonzero((place_S >= data.max_length) & np.isin(examples.ids_S, ids))
    if len(cut):
        at = int(np.searchsorted(examples.offsets_N1, cut[0], side="right")) - 1
        what = f"data.max_length={data.max_length} would truncate an image or other tokens that must stay whole"
        what = f"{what}: the example has {examples.lengths_N[at]} tokens"
        fix = "increase data.max_length, use smaller or fewer images, or set data.truncation=drop"
        raise DataError(Problem(what, place(at), fix))


def too_long(limit: int) -> str:
    """What rows are counted as that ``data.truncation=drop`` drops."""
    return f"rows longer than {limit} tokens dropped"


def lost(examples: Examples, data: DataSection) -> Iterator[tuple[int, str]]:
    """The positions of examples that will be dropped as they are, because of their length or labels, and why."""
    import numpy as np

    untrained_N = examples.trained_N == 0
    yield from ((int(at), NOTHING_TRAINED) for at in np.flatnonzero(untrained_N))
    if data.truncation == "drop":
        long_N = (examples.lengths_N > data.max_length) & ~untrained_N
        yield from ((int(at), too_long(data.max_length)) for at in np.flatnonzero(long_N))


def drop_untrained(examples: Examples, split: str, counts: Counts, source_N: np.ndarray | None) -> Examples:
    """The examples with at least one trained token; the others are dropped and counted, by their sources too."""
    trained_N = examples.trained_N > 0
    if not trained_N.all():
        counts.add_each(split, NOTHING_TRAINED, ~trained_N, source_N)
    return examples.where(trained_N)
