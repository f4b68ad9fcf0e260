"""The largest batch of a run."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from sftkit.config.train_fields import train_value
from sftkit.data.columns import ATTACHED

if TYPE_CHECKING:
    from sftkit.run.stages import PreparedRun

AT_ONCE = 1 << 16  # rows whose lengths are compared at once


def largest_batch(run: PreparedRun) -> dict[str, Any]:
    """A batch of the longest rows; for a stream, whose rows are not known, of rows of `data.max_length` tokens.

    Raises:
        HookError: if the collator of a plugin fails.
        RunError: if the collator of the run's inputs fails, or the batch does not keep the contract of collators.
    """
    rows, config = run.data.train, run.config
    size = int(train_value(config, "per_device_train_batch_size"))
    if hasattr(rows, "with_format"):
        examples = [rows[index] for index in _longest(rows, size)]
    else:
        examples = [_lengthened(example, config.data.max_length) for example in islice(iter(rows), 1)] * size
    return dict(run.collator(examples))


def as_rows(batch: Mapping[str, Any]) -> dict[str, Any]:
    """A padding-free batch with one row per example and no mask, for each example attends to itself alone.

    Any other batch is returned unchanged.
    """
    from sftkit.training.batches import rows_apart

    if "row_lengths" not in batch:
        return dict(batch)
    lengths = batch["row_lengths"].tolist()
    fills = {"input_ids": 0, "labels": -100, "loss_weights": 1}
    return {name: rows_apart(batch[name], lengths, fill) for name, fill in fills.items() if name in batch}


def _longest(rows: Any, number: int) -> list[int]:
    """The indices of the longest rows."""
    import numpy as np

    from sftkit.data.columns import flatten_column

    arrow = rows.with_format("arrow")
    lengths = [np.zeros(0, np.int64)]
    for start in range(0, len(rows), AT_ONCE):
        lengths.append(np.diff(flatten_column(arrow[start : start + AT_ONCE], "input_ids")[1]))
    lengths_N = np.concatenate(lengths)  # noqa: N806 (suffixes are shapes)
    number = min(number, len(lengths_N))
    return [int(index) for index in np.argpartition(-lengths_N, number - 1)[:number]]


def _lengthened(example: dict[str, Any], length: int) -> dict[str, Any]:
    """An example of this length, with its columns repeated.

    One with attached media is repeated in whole copies, because its tokens must match the media.
    """
    own = len(example["input_ids"])
    media = example.get(ATTACHED)
    times = max(1, length // own) if media else -(-length // own)
    longer = {
        name: (list(value) * times)[:length] if hasattr(value, "__len__") and len(value) == own else value
        for name, value in example.items()
        if name != ATTACHED
    }
    return longer | ({ATTACHED: media * times if isinstance(media, list) else media} if media else {})
