"""Fitting examples into ``data.max_length``, with every loss counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sftkit.data.columns import count_trained, flat, from_flat
from sftkit.errors import DataError, Problem

if TYPE_CHECKING:
    from datasets import Dataset

    from sftkit.config import RunConfig
    from sftkit.data.tally import Tally

NOTHING_TRAINED = "rows without a trained token dropped"


def fit_length(dataset: Dataset, split: str, config: RunConfig, tally: Tally) -> Dataset:
    """Examples of at most ``config.data.max_length`` tokens, by the policy ``config.data.truncation``.

    Examples that lose their last trained token are dropped. Everything is counted in ``tally``.

    Raises:
        DataError: with the policy ``error``, for the first example that is too long.
    """
    import numpy as np

    limit, policy = config.data.max_length, config.data.truncation
    ids, offsets = flat(dataset, "input_ids")
    lengths = np.diff(offsets)
    long = lengths > limit
    if not long.any():
        return dataset
    if policy == "error":
        row = int(np.argmax(long))
        what = f"example {row + 1} has {lengths[row]} tokens, more than data.max_length={limit}"
        raise DataError(Problem(what, f"data.{split}", "raise data.max_length, or set data.truncation=keep_start"))
    if policy == "drop":
        tally.add(split, f"rows longer than {limit} tokens dropped", int(long.sum()))
        return dataset.select(np.flatnonzero(~long))
    labels, _ = flat(dataset, "labels")
    kept_offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, limit))])
    position = np.arange(len(ids)) - np.repeat(offsets[:-1], lengths)
    keep = position < limit
    fitted = from_flat(kept_offsets, input_ids=ids[keep], labels=labels[keep])
    trained_before, trained = count_trained(labels, offsets), count_trained(labels[keep], kept_offsets)
    tally.add(split, "rows truncated", int(long.sum()))
    tally.add(split, "completions cut", int((trained < trained_before).sum()))
    tally.add(split, "tokens cut", int(len(ids) - keep.sum()))
    return drop_untrained(fitted, split, tally)


def drop_untrained(dataset: Dataset, split: str, tally: Tally) -> Dataset:
    """The examples with at least one trained token; the others are counted and dropped."""
    import numpy as np

    trained = count_trained(*flat(dataset, "labels")) > 0
    if trained.all():
        return dataset
    tally.add(split, NOTHING_TRAINED, int((~trained).sum()))
    return dataset.select(np.flatnonzero(trained))
