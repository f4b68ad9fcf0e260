"""Collators around a collator: rows as a script's own collator had them in TRL, and batches for sftkit's trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sftkit.api import LOSS_WEIGHTS
from sftkit_plugins.completion_only.collator import DataCollatorForCompletionOnlyLM

__all__ = ["DataCollatorForCompletionOnlyLM", "JoinedDocuments", "PlainRows", "WithRowLengths"]


@dataclass(frozen=True)
class PlainRows:
    """Passes prepared rows to a script's own collator as TRL did: ``input_ids`` and ``attention_mask``, as lists.

    Packed rows have ``labels`` and ``position_ids`` instead of an attention mask, which would join their documents.
    """

    collator: Callable[[list[Any]], Any]

    def __call__(self, examples: list[Any]) -> Any:
        """The collator's batch.

        Raises:
            ValueError: if rows are packed and the batch has no ``position_ids``.
        """
        rows = [self._plain(example) for example in examples]
        batch = self.collator(rows)
        if "position_ids" in rows[0]:
            if "position_ids" not in batch:
                raise ValueError(
                    "the data_collator drops position_ids, which keep packed documents apart. Return them in the batch."
                )
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
class JoinedDocuments:
    """Passes packed rows on without ``position_ids``: one document each, for a model that cannot keep several apart."""

    collator: Callable[[list[Any]], Any]

    def __call__(self, examples: list[Any]) -> Any:
        """The collator's batch."""
        return self.collator(
            [{name: value for name, value in example.items() if name != "position_ids"} for example in examples]
        )


@dataclass(frozen=True)
class WithRowLengths:
    """Adds the length of each example (``row_lengths``, int64) to batches without padding, which have one row."""

    collator: Callable[[list[Any]], Any]

    def __call__(self, examples: list[Any]) -> Any:
        """The collator's batch."""
        batch = dict(self.collator(examples))
        positions = batch["position_ids"][0]
        starts = (positions == 0).nonzero().squeeze(1)
        batch["row_lengths"] = starts.diff(append=starts.new_tensor([len(positions)]))
        return batch
