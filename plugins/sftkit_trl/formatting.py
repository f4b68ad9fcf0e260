"""Texts and token ids of a script's rows, where TRL made them before the rows were packed or batched."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import datasets

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sftkit_trl.arguments import SFTConfig


def with_texts(rows: Any, function: Callable[[Any], Any], args: SFTConfig) -> Any:
    """A data set of the texts that the function returns; it is called with a batch, or with one row when packing.

    Raises:
        ValueError: if the function returns anything but a list for a batch.
    """

    def texts_of_batch(batch: Any) -> dict[str, Any]:
        texts = function(batch)
        if not isinstance(texts, list):
            raise ValueError(
                "The `formatting_func` should return a list of processed strings since it can lead to silent bugs. "
                f"Without packing it is called with a batch of rows; it returned {type(texts).__name__}."
            )
        return {"text": texts}

    if args.packing:
        return rows.map(lambda row: {"text": function(row)}, remove_columns=column_names(rows))
    return rows.map(texts_of_batch, **_in_batches(rows, args))


def keeps_end(tokenizer: PreTrainedTokenizerBase, args: SFTConfig) -> bool:
    """Whether long texts keep their end; packed texts are not truncated."""
    return tokenizer.truncation_side == "left" and not args.packing


def with_last_tokens(
    rows: Any, column: str, tokenizer: PreTrainedTokenizerBase, args: SFTConfig, special_tokens: bool
) -> Any:
    """A data set of the tokens of texts, of which long ones keep their end. Rows without tokens are dropped.

    Args:
        rows: have the texts in ``column``.
        column: its name.
        tokenizer: truncates on its left side.
        args: the script's, complete.
        special_tokens: whether the tokenizer adds its special tokens; truncation leaves room for them.

    Raises:
        ValueError: if there is no such column.
    """
    if column not in column_names(rows):
        raise ValueError(
            f"truncation_side='left' needs the column {column!r}; the data has {', '.join(column_names(rows))}. Set "
            "dataset_text_field to the column of the texts, or pass a formatting_func."
        )
    options = {"truncation": True, "max_length": args.max_seq_length, "add_special_tokens": special_tokens}

    def tokens_of_batch(batch: Any) -> dict[str, Any]:
        ids = [each for each in tokenizer(batch[column], **options)["input_ids"] if each]
        return {"input_ids": ids, "attention_mask": [[1] * len(each) for each in ids]}

    return rows.map(tokens_of_batch, **_in_batches(rows, args))


def column_names(rows: Any) -> list[str]:
    """The columns of a data set, which a stream may have to look up in its first row."""
    return rows.column_names or list(next(iter(rows)))


def _in_batches(rows: Any, args: SFTConfig) -> dict[str, Any]:
    """Arguments of ``map`` for a function of batches whose result replaces the columns."""
    processes = {"num_proc": args.dataset_num_proc} if isinstance(rows, datasets.Dataset) else {}
    return {"batched": True, "batch_size": args.dataset_batch_size, "remove_columns": column_names(rows), **processes}
