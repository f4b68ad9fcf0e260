"""Rows that are tokenized already: ``input_ids`` with ``labels``, with a mask, or alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

from sftkit.api import (
    IGNORE_INDEX,
    Columns,
    ConfigError,
    DataError,
    Formatted,
    Formatter,
    Outcome,
    Problem,
    RowError,
    Skipped,
    TokenDocument,
)
from sftkit_plugins.formats.weights import COLUMN, has_weights, weights_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sftkit_plugins.formats import Formats

IDS, LABELS, ATTENTION, POSITIONS = "input_ids", "labels", "attention_mask", "position_ids"
#: Masks of other trainers and of chat templates: 1 for tokens that are trained.
MASKS = (
    *("completion_mask", "assistant_masks", "assistant_mask", "loss_mask"),
    *("response_mask", "target_mask", "train_mask"),
)
_NO_LOSS = ("attention_mask", "special_tokens_mask")
PADDING_CUT = "padding of tokenized rows cut (attention_mask is 0)"
ALL_TRAINED = "tokenized rows without labels or a mask: all tokens are trained"
SPLIT = "tokenized rows split into documents, where position_ids restart"


def has_tokens(columns: Mapping[str, Any]) -> bool:
    """Whether there is a column ``input_ids``, which then holds token ids."""
    return IDS in columns


@dataclass(frozen=True, kw_only=True)
class Tokens(Formatter):
    """Rows of token ids. They are neither formatted nor encoded again.

    Attributes:
        columns: the columns of the data that are used.
        vocabulary: the number of tokens of the tokenizer.
        weighted: whether the data has a column ``weight``.
    """

    columns: frozenset[str]
    vocabulary: int
    weighted: bool = False

    @classmethod
    def of(cls, columns: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, options: Formats) -> Self:
        """A formatter for data with these columns.

        Raises:
            ConfigError: for the option ``loss``, which tokens cannot follow.
            DataError: for a mask of an unknown name, if nothing else says what is trained.
        """
        trained = (LABELS,) if LABELS in columns else tuple(name for name in MASKS if name in columns)
        used = {IDS, *trained, *({ATTENTION, POSITIONS} & columns.keys())}
        unknown = [name for name in columns if "mask" in name.lower() and name not in (*MASKS, *_NO_LOSS)]
        if unknown and not trained:
            what = f"the column {unknown[0]!r} may say which tokens are trained, but it is not clear how"
            fix = f"rename it to {MASKS[0]} if 1 stands for trained tokens, or remove it"
            raise DataError(Problem(what, "data", fix))
        if options.loss is not None:
            raise ConfigError(_decided(f"loss={options.loss} has no effect", "remove the option"))
        weighted = has_weights(columns)
        return cls(
            columns=frozenset(used | ({COLUMN} if weighted else set())), vocabulary=len(tokenizer), weighted=weighted
        )

    @property
    def tokenized(self) -> bool:
        """Always."""
        return True

    @property
    def columns_used(self) -> frozenset[str]:
        """The ids, what says which are trained, and what is checked."""
        return self.columns

    def defer_loss(self, plugin: str) -> Self:
        """Not possible: a plugin that decides what to train needs text.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(_decided(f"plugin {plugin} cannot be used", f"deselect {plugin}, or use data with text"))

    def __call__(self, rows: Columns) -> list[Outcome]:
        """The tokens of each row.

        Raises:
            RowError: for ids outside the vocabulary, labels that are not the ids, or columns of different lengths.
        """
        weights = weights_of(rows) if self.weighted else [1.0] * len(rows[IDS])
        return [self._row(rows, index, weight) for index, weight in enumerate(weights)]

    def _row(self, rows: Columns, index: int, weight: float) -> Outcome:
        row = {name: rows[name][index] for name in (IDS, *sorted(self.columns - {IDS, COLUMN}))}
        ids = self._ids(row, index)
        if not ids:
            return Skipped("no tokens")
        labels, notes = _labels(row, ids, index), []
        if not row.keys() & {LABELS, *MASKS}:
            notes.append(ALL_TRAINED)
        start, end = _attended(row.get(ATTENTION), index)
        if (start, end) != (0, None) and (start, end) != (0, len(ids)):
            notes.append(PADDING_CUT)
        starts = _starts((row.get(POSITIONS) or [])[start:end])
        ids, labels = ids[start:end], labels[start:end]
        if len(starts) > 1:
            notes.append(SPLIT)
        ends = [*starts[1:], len(ids)]
        documents = [
            TokenDocument(ids[first:last], labels[first:last], weight)
            for first, last in zip(starts, ends, strict=True)
            if last > first
        ]
        return Formatted(documents, notes) if documents else Skipped("no tokens")

    def _ids(self, row: Mapping[str, Any], index: int) -> list[int]:
        """The ids, in a row whose columns are lists of the same length, or null."""
        for name, values in row.items():
            if values is None and name != IDS:
                continue
            if not isinstance(values, list) or not {*map(type, values)} <= {int, bool, float}:
                what = f"column {name!r} is not a list of numbers"
                raise RowError(index, what, "write a list of numbers, one for each token")
            if len(values) != len(row[IDS]):
                what = f"column {name!r} has {len(values)} numbers, but {IDS!r} has {len(row[IDS])}"
                raise RowError(index, what, "give each token one number")
        ids: list[int] = row[IDS]
        if {*map(type, ids)} <= {int} and min(ids, default=0) >= 0 and max(ids, default=0) < self.vocabulary:
            return ids
        at = next(at for at, token in enumerate(ids) if type(token) is not int or not 0 <= token < self.vocabulary)
        what = f"column {IDS!r}: token {at + 1} is {ids[at]!r}, but the tokenizer has {self.vocabulary} tokens"
        raise RowError(index, what, "use the tokenizer with which the data was tokenized")


def _labels(row: Mapping[str, Any], ids: Sequence[int], index: int) -> list[int]:
    """Unshifted labels: as they are, or the ids where all masks are 1."""
    labels: list[int] | None = row.get(LABELS)
    if labels is not None:
        wrong = next(
            (
                at
                for at, (token, label) in enumerate(zip(ids, labels, strict=True))
                if label not in (token, IGNORE_INDEX)
            ),
            None,
        )
        if wrong is not None:
            what = f"column {LABELS!r}: label {wrong + 1} is {labels[wrong]!r}, but the token is {ids[wrong]}"
            fix = "write the token's id where it is trained, and -100 elsewhere; labels are not shifted"
            raise RowError(index, what, fix)
        return labels
    if LABELS in row:
        raise RowError(index, f"column {LABELS!r} is null", "fill in the labels, or remove the row")
    trained = [True] * len(ids)
    for name in MASKS:
        if name not in row:
            continue
        if row[name] is None or not set(row[name]) <= {0, 1}:
            raise RowError(index, f"column {name!r} is not a list of 0 and 1", "write 1 for tokens that are trained")
        trained = [both and bool(one) for both, one in zip(trained, row[name], strict=True)]
    return [token if one else IGNORE_INDEX for token, one in zip(ids, trained, strict=True)]


def _attended(mask: Sequence[int] | None, index: int) -> tuple[int, int | None]:
    """The first token that is no padding, and the one after the last."""
    if mask is None or 0 not in mask:
        return 0, None
    if 1 not in mask:
        return 0, 0
    start, end = mask.index(1), len(mask) - list(reversed(mask)).index(1)
    if not set(mask[start:end]) <= {1}:
        what = f"column {ATTENTION!r} is 0 or another number between tokens that it includes"
        raise RowError(index, what, "write 1 for each token, and 0 for padding at the start or the end")
    return start, end


def _starts(positions: Sequence[int]) -> list[int]:
    """Where documents begin: at the start, and where positions do not increase."""
    return [0, *(at for at in range(1, len(positions)) if positions[at] <= positions[at - 1])]


def _decided(what: str, fix: str) -> Problem:
    why = f"the data is tokenized already (column {IDS!r}), and its labels or masks decide what is trained"
    return Problem(f"{what}: {why}", "plugin formats", fix)
