"""The data sets of `sftkit_trl`: what is prepared, what is left as it is, and rows as collators had them in TRL."""

from __future__ import annotations

import logging
import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import pyarrow as pa
from accelerate import PartialState

from sftkit.api import flatten_column
from sftkit_trl.arguments import SFTConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sftkit.api import Stages

logger = logging.getLogger("sftkit")

TRAIN, EVAL = "train", "eval"


@dataclass
class Rows:
    """The data sets by split: ``train``, and ``eval`` or, where evaluation sets have names, ``eval.NAME``.

    Attributes:
        as_they_are: sets that are not prepared.
        to_prepare: sets as they go into the preparation, and as they were given.
        add_special_tokens: whether the tokenizer's special tokens are put around texts.
        text_column: where the texts are.
    """

    as_they_are: dict[str, Any]
    to_prepare: dict[str, tuple[Any, Any]]
    add_special_tokens: bool
    text_column: str

    @classmethod
    def of(cls, train: Any, evaluation: Any, function: Any, tokenizer: Any, args: SFTConfig) -> Rows:
        """Sort them, and let the formatting function make texts.

        Raises:
            ValueError: if the function makes no list of texts from a batch.
        """
        options = args.dataset_kwargs or {}
        # As in TRL: with packing the function goes before the column, and without it the column before the function.
        field = None if args.packing and function is not None else args.dataset_text_field
        rows = cls({}, {}, options.get("add_special_tokens", True), field or "text")
        if function is not None and field is not None:
            warnings.warn("`formatting_func` is not used: `dataset_text_field` says where the text is.", stacklevel=4)
        rendered = []  # by the chat template, which writes special tokens itself
        for name, given in rows.named(train, evaluation):
            if given is None:
                continue
            if isinstance(given, datasets.DatasetDict) and name != EVAL:
                raise ValueError(f"{name} has the splits {', '.join(given)}: give one of them")
            if isinstance(given, list) and given and isinstance(given[0], dict) and "input_ids" not in given[0]:
                given = datasets.Dataset.from_list(given)
            skipped = options.get("skip_prepare_dataset")
            if skipped or not _is_raw(given):
                rows.as_they_are[name] = given
                if function is not None and not skipped and _has_ids(given):
                    warnings.warn(
                        "The data set holds `input_ids` already: `formatting_func` is not used.", stacklevel=4
                    )
                continue
            pairs = {"prompt", "completion"} == set(_columns(given))
            formats = function
            if pairs and field is None and function is None and tokenizer.chat_template:
                formats = get_formatting_func_from_dataset(given, tokenizer)
                rendered.append(name)
            made = given.select_columns([field]) if field in _columns(given) else given
            if formats is not None and field is None:
                made = _texts(given, formats, args)
            rows.to_prepare[name] = (made, given)
        if rendered and len(rendered) < len(rows.to_prepare):
            what = f"{', '.join(rendered)}: prompt and completion, rendered with the chat template, and others are not"
            raise ValueError(f"{what}; give all data sets the same columns, or a formatting_func")
        rows.add_special_tokens = rows.add_special_tokens and not rendered
        return rows

    @property
    def train(self) -> Any:
        """The training set to be prepared, or None."""
        return self.to_prepare.get(TRAIN, (None,))[0]

    @property
    def eval(self) -> dict[str, Any]:
        """The evaluation sets to be prepared."""
        held_out = {name: made for name, (made, _) in self.to_prepare.items() if name != TRAIN}
        streamed = (name for name, made in held_out.items() if isinstance(made, datasets.IterableDataset))
        return held_out | {name: datasets.Dataset.from_list(list(held_out[name])) for name in streamed}

    def prepared(self, stages: Stages, tokenizer: Any, args: SFTConfig) -> tuple[Any, Any]:
        """The training set and the evaluation set, or the several by name, ready for the collator."""
        made = {**self.as_they_are, **self._made(stages, tokenizer, args)}
        train, one = made.pop(TRAIN, None), made.pop(EVAL, None)
        return train, {name.removeprefix(f"{EVAL}."): rows for name, rows in made.items()} or one

    def named(self, train: Any, evaluation: Any) -> list[tuple[str, Any]]:
        """Data sets, with the name of the split of each."""
        if isinstance(evaluation, dict):
            return [(TRAIN, train), *((f"{EVAL}.{name}", rows) for name, rows in evaluation.items())]
        return [(TRAIN, train), (EVAL, evaluation)]

    def _made(self, stages: Stages, tokenizer: Any, args: SFTConfig) -> dict[str, Any]:
        if self.train is not None:
            data = stages.prepare_data(tokenizer)
        elif self.to_prepare:
            data = stages.prepare_held_out(tokenizer)
        else:
            return {}
        if PartialState().is_main_process:
            for split, counts in data.summary().items():
                logger.info("%s: %s", split, ", ".join(f"{number} {what}" for what, number in counts.items()))
        made = {name: _as_in_trl(data.splits[name]) for name in self.to_prepare}
        if not args.remove_unused_columns and not args.packing:
            made = {name: _beside(dataset, self.to_prepare[name][1]) for name, dataset in made.items()}
        return made


def _as_in_trl(rows: Any) -> Any:
    """Rows of lists: ``input_ids`` and ``attention_mask``, all of which is trained; others keep their labels."""
    if not isinstance(rows, datasets.Dataset):
        return rows
    rows = rows.with_format(None)
    if set(rows.column_names) != {"input_ids", "labels"}:  # packed, or weighted
        return rows
    ids, offsets = flatten_column(rows.data.table, "input_ids")
    mask = pa.table({"attention_mask": pa.LargeListArray.from_arrays(pa.array(offsets), np.ones(len(ids), np.int8))})
    beside = datasets.Dataset(datasets.table.InMemoryTable(mask))
    return datasets.concatenate_datasets([rows.remove_columns("labels"), beside], axis=1)


def _columns(rows: Any) -> list[str]:
    return rows.column_names or list(next(iter(rows)))


def _is_raw(rows: Any) -> bool:
    return isinstance(rows, datasets.Dataset | datasets.IterableDataset) and not _has_ids(rows)


def _has_ids(rows: Any) -> bool:
    return isinstance(rows, datasets.Dataset | datasets.IterableDataset) and "input_ids" in _columns(rows)


def _texts(rows: Any, function: Callable[[Any], Any], args: SFTConfig) -> Any:
    """Rows with the texts that the function makes: of a batch, or with packing of one row."""

    def of_batch(batch: Any) -> dict[str, Any]:
        texts = function(batch)
        if not isinstance(texts, list):
            raise ValueError(
                "The `formatting_func` should return a list of processed strings since it can lead to silent bugs: "
                f"without packing it gets a batch of rows, and it returned {type(texts).__name__}."
            )
        return {"text": texts}

    options: dict[str, Any] = {"remove_columns": _columns(rows)}
    if args.packing:
        return rows.map(lambda row: {"text": function(row)}, **options)
    if isinstance(rows, datasets.Dataset):
        options["num_proc"] = args.dataset_num_proc
    return rows.map(of_batch, batched=True, batch_size=args.dataset_batch_size, **options)


def _beside(made: Any, given: Any) -> Any:
    """Prepared rows with the other columns that the data had, for a collator that reads them."""
    if not isinstance(made, datasets.Dataset) or not isinstance(given, datasets.Dataset):
        return made
    if len(made) != len(given):
        raise ValueError(
            f"remove_unused_columns=False keeps each row's other columns, and {len(given)} rows became {len(made)}: "
            "those without text are left out; take them out of the data"
        )
    rest = given.remove_columns([name for name in given.column_names if name in made.column_names])
    return datasets.concatenate_datasets([made, rest.with_format(None)], axis=1)


def get_formatting_func_from_dataset(dataset: Any, tokenizer: PreTrainedTokenizerBase) -> Callable[[Any], Any] | None:
    """A function that renders rows (one, or a batch as columns) with the chat template; None for other columns.

    Columns ``messages`` or ``conversations`` of ``{role, content}``, or nothing but a text ``prompt`` and
    ``completion``.
    """
    features = getattr(dataset, "features", None) or {}
    for column in ("messages", "conversations"):
        if column in features:
            return _renders(operator.itemgetter(column), tokenizer) if _is_chat(features[column]) else None
    if set(features) == {"prompt", "completion"} and all(_is_text(feature) for feature in features.values()):
        roles = (("user", "prompt"), ("assistant", "completion"))
        return _renders(lambda row: [{"role": role, "content": row[column]} for role, column in roles], tokenizer)
    return None


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _is_chat(feature: Any) -> bool:
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    return isinstance(inner, dict) and set(inner) == {"role", "content"} and all(map(_is_text, inner.values()))


def _renders(messages_of: Callable[[Any], Any], tokenizer: PreTrainedTokenizerBase) -> Callable[[Any], Any]:
    def render(rows: Any) -> Any:
        first = next(iter(rows.values()))
        batched = isinstance(first, list) and not (first and isinstance(first[0], dict))
        if not batched:
            return tokenizer.apply_chat_template(messages_of(rows), tokenize=False)
        single = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
        return [tokenizer.apply_chat_template(messages_of(row), tokenize=False) for row in single]

    return render
