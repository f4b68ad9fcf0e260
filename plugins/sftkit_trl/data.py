"""The data sets of a script: which are prepared, which are used unchanged, and what preparation makes of them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
from accelerate import PartialState

from sftkit.api import flatten_column, warn_caller
from sftkit_trl.extras.dataset_formatting import get_formatting_func_from_dataset
from sftkit_trl.formatting import column_names, keeps_end, with_last_tokens, with_texts

if TYPE_CHECKING:
    from sftkit.api import Stages
    from sftkit_trl.arguments import SFTConfig

logger = logging.getLogger("sftkit")

TRAIN, EVAL = "train", "eval"


class Unprepared(NamedTuple):
    """A data set to prepare: its rows as preparation reads them, and as the script passed them."""

    rows: Any
    original: Any


@dataclass(frozen=True)
class DataSets:
    """The data sets by split: ``train``, and ``eval`` or, if evaluation sets have names, ``eval.NAME``.

    Attributes:
        unchanged: data sets that are used as they are.
        to_prepare: the others.
        add_special_tokens: whether the tokenizer adds its special tokens to texts.
        text_column: the column that holds the texts.
    """

    unchanged: Mapping[str, Any]
    to_prepare: Mapping[str, Unprepared]
    add_special_tokens: bool = True
    text_column: str = "text"

    @classmethod
    def of(cls, splits: Mapping[str, Any], function: Any, tokenizer: Any, args: SFTConfig) -> DataSets:
        """Sort data sets, and call the formatting function.

        Args:
            splits: data sets by split.
            function: the script's formatting function, or None.
            tokenizer: renders rows of ``prompt`` and ``completion`` if it has a chat template.
            args: the script's, complete.

        Raises:
            ValueError: if the function returns no list for a batch, or only some of the sets are rendered.
        """
        options = args.dataset_kwargs or {}
        # As in TRL: the function overrides the column when packing, and the column overrides the function otherwise.
        field = None if args.packing and function is not None else args.dataset_text_field
        if function is not None and field is not None:
            warn_caller("`formatting_func` is not used: `dataset_text_field` names the column of the texts.")
        unchanged: dict[str, Any] = {}
        to_prepare: dict[str, Unprepared] = {}
        rendered = []  # by the chat template, which writes special tokens itself
        for name, passed in splits.items():
            if options.get("skip_prepare_dataset"):
                unchanged[name] = passed
                continue
            rows = _as_data_set(name, passed)
            if not _is_raw(rows):
                unchanged[name] = rows
                if function is not None and _has_ids(rows):
                    warn_caller("`formatting_func` is not used: the data set already has the column `input_ids`.")
            elif field is not None or (function is None and _is_of_texts(rows)):
                column = field or "text"
                made = rows.select_columns([column]) if column in column_names(rows) else rows
                to_prepare[name] = Unprepared(made, rows)
            else:
                formats = function
                here = keeps_end(tokenizer, args) or set(column_names(rows)) == {"prompt", "completion"}
                if function is None and here and tokenizer.chat_template:
                    formats = get_formatting_func_from_dataset(rows, tokenizer)
                    rendered += [name] if formats else []
                to_prepare[name] = Unprepared(rows if formats is None else with_texts(rows, formats, args), rows)
        if rendered and len(rendered) < len(to_prepare):
            what = f"{', '.join(rendered)}: prompt and completion are rendered with the chat template, other sets not"
            raise ValueError(f"{what}. Give all data sets the same columns, or pass a formatting_func.")
        return cls(unchanged, to_prepare, options.get("add_special_tokens", True) and not rendered, field or "text")

    @property
    def train(self) -> Any:
        """The training set to prepare, or None."""
        return self.to_prepare[TRAIN].rows if TRAIN in self.to_prepare else None

    @property
    def eval(self) -> dict[str, Any]:
        """The evaluation sets to prepare; streams are read completely."""
        held_out = {name: rows for name, (rows, _) in self.to_prepare.items() if name != TRAIN}
        streams = [name for name, rows in held_out.items() if isinstance(rows, datasets.IterableDataset)]
        return held_out | {name: datasets.Dataset.from_list(list(held_out[name])) for name in streams}

    def prepare(self, stages: Stages, tokenizer: Any, args: SFTConfig) -> dict[str, Any]:
        """Those that are prepared, by split, ready for the collator.

        Raises:
            DataError: if the data cannot be used.
            ValueError: if rows were dropped whose other columns the script wants to keep.
        """
        if not self.to_prepare:
            return {}
        made = self._cut_on_the_left(tokenizer, args) if keeps_end(tokenizer, args) else self._by(stages, tokenizer)
        if args.remove_unused_columns or args.packing:
            return made
        return {name: _with_other_columns(rows, self.to_prepare[name].original) for name, rows in made.items()}

    def _cut_on_the_left(self, tokenizer: Any, args: SFTConfig) -> dict[str, Any]:
        special, column = self.add_special_tokens, self.text_column
        sets = {name: each.rows for name, each in self.to_prepare.items()}
        return {name: with_last_tokens(rows, column, tokenizer, args, special) for name, rows in sets.items()}

    def _by(self, stages: Stages, tokenizer: Any) -> dict[str, Any]:
        data = stages.prepare_held_out(tokenizer) if self.train is None else stages.prepare_data(tokenizer)
        if PartialState().is_main_process:
            for split, counts in data.summary().items():
                logger.info("%s: %s", split, ", ".join(f"{number} {what}" for what, number in counts.items()))
        return {name: _as_in_trl(data.splits[name]) for name in self.to_prepare}


class PreparedSets:
    """The data sets that were prepared for a trainer; a script's own collator gets their rows as in TRL."""

    def __init__(self) -> None:
        self._sets: list[Any] = []

    def add(self, sets: Iterable[Any]) -> None:
        """Take note of further data sets."""
        self._sets += sets

    def __iter__(self) -> Iterator[Any]:
        return iter(self._sets)

    def __contains__(self, rows: Any) -> bool:
        return any(rows is each for each in self._sets)

    def __bool__(self) -> bool:
        return bool(self._sets)


def by_split(train: Any, evaluation: Any) -> dict[str, Any]:
    """The data sets that there are, by split."""
    named = evaluation if isinstance(evaluation, dict) else {"": evaluation}
    splits = {TRAIN: train, **{f"{EVAL}.{name}" if name else EVAL: rows for name, rows in named.items()}}
    return {name: rows for name, rows in splits.items() if rows is not None}


def from_splits(splits: Mapping[str, Any]) -> tuple[Any, Any]:
    """The training set, and the evaluation set or a dict of several."""
    several = {name.removeprefix(f"{EVAL}."): rows for name, rows in splits.items() if name.startswith(f"{EVAL}.")}
    return splits.get(TRAIN), several or splits.get(EVAL)


def is_packed(rows: Any) -> bool:
    """Whether rows hold several documents, whose positions restart."""
    return "position_ids" in (getattr(rows, "column_names", None) or [])


def _as_data_set(name: str, passed: Any) -> Any:
    if isinstance(passed, datasets.DatasetDict) and name != EVAL:
        raise ValueError(f"{name} is a DatasetDict with the splits {', '.join(passed)}. Pass one of them.")
    if isinstance(passed, list) and passed and isinstance(passed[0], dict) and "input_ids" not in passed[0]:
        return datasets.Dataset.from_list(passed)
    return passed


def _is_raw(rows: Any) -> bool:
    return isinstance(rows, datasets.Dataset | datasets.IterableDataset) and not _has_ids(rows)


def _has_ids(rows: Any) -> bool:
    return isinstance(rows, datasets.Dataset | datasets.IterableDataset) and "input_ids" in column_names(rows)


def _is_of_texts(rows: Any) -> bool:
    """Whether rows have a column ``text`` and no conversation, which has precedence, as in TRL."""
    names = column_names(rows)
    return "text" in names and not {"messages", "conversations"} & set(names)


def _as_in_trl(rows: Any) -> Any:
    """Rows of lists: ``input_ids`` and ``attention_mask`` if all tokens are trained; other rows keep their labels."""
    if not isinstance(rows, datasets.Dataset):
        return rows
    rows = rows.with_format(None)
    if set(rows.column_names) != {"input_ids", "labels"}:  # packed, or weighted
        return rows
    ids, offsets = flatten_column(rows.data.table, "input_ids")
    mask = pa.table({"attention_mask": pa.LargeListArray.from_arrays(pa.array(offsets), np.ones(len(ids), np.int8))})
    masks = datasets.Dataset(datasets.table.InMemoryTable(mask))
    return datasets.concatenate_datasets([rows.remove_columns("labels"), masks], axis=1)


def _with_other_columns(made: Any, original: Any) -> Any:
    """Prepared rows with the other columns of the original, for a collator that reads them."""
    if not isinstance(made, datasets.Dataset) or not isinstance(original, datasets.Dataset):
        return made
    if len(made) != len(original):
        raise ValueError(
            f"remove_unused_columns=False keeps the other columns of each row, but {len(original)} rows became "
            f"{len(made)}, because rows without text are dropped. Remove them from the data."
        )
    rest = original.remove_columns([name for name in original.column_names if name in made.column_names])
    return datasets.concatenate_datasets([made, rest.with_format(None)], axis=1)
