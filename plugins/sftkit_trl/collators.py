"""Collators that give a user's own collator its rows as TRL had them, and batches their row lengths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sftkit.api import LOSS_WEIGHTS
from sftkit_plugins.completion_only.collator import DataCollatorForCompletionOnlyLM

__all__ = ["DataCollatorForCompletionOnlyLM", "PlainRows", "WithRowLengths"]


@dataclass(frozen=True)
class PlainRows:
    """A collator of one's own, given rows as TRL's had them: ``input_ids`` and ``attention_mask``, as lists."""

    collator: Callable[[list[Any]], Any]

    def __call__(self, examples: list[Any]) -> Any:
        """The collator's batch; that of packed rows has no attention mask, which would join their documents."""
        rows = [self._plain(example) for example in examples]
        batch = self.collator(rows)
        if "position_ids" in rows[0]:
            if "position_ids" not in batch:
                raise ValueError("the data_collator leaves out position_ids, which keep packed documents apart")
            batch = {name: value for name, value in batch.items() if name != "attention_mask"}
        return batch

    def _plain(self, example: Any) -> Any:
        row = {name: value for name, value in example.items() if name != LOSS_WEIGHTS}
        row |= {name: list(map(int, row[name])) for name in ("input_ids", "labels", "position_ids") if name in row}
        if "position_ids" in row:
            return row
        row.pop("labels", None)
        return row | {"attention_mask": [1] * len(row["input_ids"])}


@dataclass(frozen=True)
class WithRowLengths:
    """A collator that lays the rows of a batch into one, and how long each is (``row_lengths``, int64)."""

    collator: Callable[[list[Any]], Any]

    def __call__(self, examples: list[Any]) -> Any:
        """The collator's batch."""
        batch = dict(self.collator(examples))
        positions = batch["position_ids"][0]
        starts = (positions == 0).nonzero().squeeze(1)
        batch["row_lengths"] = starts.diff(append=starts.new_tensor([len(positions)]))
        return batch
