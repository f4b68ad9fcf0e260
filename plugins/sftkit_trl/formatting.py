"""Texts from rows: by the chat template, or by the script's own formatting function."""

from __future__ import annotations

import operator
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

    options: dict[str, Any] = {"remove_columns": column_names(rows)}
    if args.packing:
        return rows.map(lambda row: {"text": function(row)}, **options)
    if isinstance(rows, datasets.Dataset):
        options["num_proc"] = args.dataset_num_proc
    return rows.map(texts_of_batch, batched=True, batch_size=args.dataset_batch_size, **options)


def column_names(rows: Any) -> list[str]:
    """The columns of a data set, which a stream may have to look up in its first row."""
    return rows.column_names or list(next(iter(rows)))


def get_formatting_func_from_dataset(dataset: Any, tokenizer: PreTrainedTokenizerBase) -> Callable[[Any], Any] | None:
    """A function that renders one row, or a batch as columns, with the chat template; None for other columns.

    Args:
        dataset: with a column ``messages`` or ``conversations`` of ``{role, content}``, or with exactly the text
            columns ``prompt`` and ``completion``.
        tokenizer: has the chat template.
    """
    features = getattr(dataset, "features", None) or {}
    for column in ("messages", "conversations"):
        if column in features:
            return _rendering(operator.itemgetter(column), tokenizer) if _is_chat(features[column]) else None
    if set(features) == {"prompt", "completion"} and all(_is_text(feature) for feature in features.values()):
        roles = (("user", "prompt"), ("assistant", "completion"))
        return _rendering(lambda row: [{"role": role, "content": row[column]} for role, column in roles], tokenizer)
    return None


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _is_chat(feature: Any) -> bool:
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    return isinstance(inner, dict) and set(inner) == {"role", "content"} and all(map(_is_text, inner.values()))


def _rendering(messages_of: Callable[[Any], Any], tokenizer: PreTrainedTokenizerBase) -> Callable[[Any], Any]:
    def render(rows: Any) -> Any:
        first = next(iter(rows.values()))
        batched = isinstance(first, list) and not (first and isinstance(first[0], dict))
        if not batched:
            return tokenizer.apply_chat_template(messages_of(rows), tokenize=False)
        single = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
        return [tokenizer.apply_chat_template(messages_of(row), tokenize=False) for row in single]

    return render
