# ruff: noqa: N803, N806, N815 (suffixes are shapes)
"""Batches of a run on which its model is tried: rows of the data, and rows of the data's tokens in chosen lengths.

Legend: T tokens of an example, S tokens of a batch, one row behind the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

SAMPLED = 32  # rows of the data that are looked at
ROWS = 2  # of a batch: some attention implementations keep documents apart only in batches of one row
SHORT = ((3, 7, 5), (8, 6, 4))  # lengths of the documents of two rows
OVER = 9  # tokens by which a document exceeds a limit
#: Keys of a model's configuration with a number of tokens from which on it computes something else.
LIMITS = ("sliding_window", "attention_chunk_size", "window_size", "floor_scale", "original_max_position_embeddings")
#: Kinds of rotary embeddings whose frequencies depend on the longest document of a batch.
BY_LENGTH = {"longrope", "dynamic"}
Collate = Callable[[list[dict[str, Any]]], Mapping[str, Any]]


class Placed(NamedTuple):
    """A document in a batch: its tokens, and the index of the first in the flattened batch."""

    ids: list[int]
    start: int


@dataclass(frozen=True)
class Trial:
    """A batch, and the documents in it that are compared with themselves alone.

    Attributes:
        batch: as the collator makes it.
        documents: the documents.
        targets: the indices of those whose loss is differentiated; empty if gradients are not compared.
        limit: what of the model's configuration the batch exceeds, as ``sliding_window 8``; empty if nothing.
    """

    batch: Mapping[str, Any]
    documents: list[Placed]
    targets: list[int]
    limit: str = ""


class UnsuitedBatchError(Exception):
    """The collator's batch does not contain the tokens of its examples."""


def document_trials(
    architecture: Any, rows: Any, collator: Collate | None, batch_size: int, max_length: int
) -> list[Trial]:
    """The batches on which a model shows whether it computes each document as if it were alone.

    First short documents of the data's tokens, behind others of different lengths. Then rows of the data. Then, where
    the data reaches them, documents and rows longer than every length from which on the model computes something else,
    such as a sliding window.

    Args:
        architecture: the model's configuration.
        rows: training rows, a Dataset or a Stream; None for tokens from the vocabulary.
        collator: makes a batch; with None it has ``input_ids`` and ``position_ids``.
        batch_size: examples of a batch.
        max_length: tokens of a row, where the rows are not known.

    Raises:
        UnsuitedBatchError: if the collator's batch does not contain the tokens of its examples.
    """
    text = architecture.get_text_config()
    sample = _Sample.of(rows, int(text.vocab_size))
    build = _Builder(collator or positions_only, ROWS if batch_size > 1 and sample.packed else 1)
    limits = sorted((length, key) for key, length in length_limits(text).items())
    document, row = sample.reach(rows, max_length) if limits else (0, 0)
    length, key = next((limit for limit in reversed(limits) if limit[0] < row), (0, ""))
    limit = f"{key} {length}" if key else ""
    trials = [*build(map(sample.short, SHORT))]
    trials += build(sample.real(batch_size), gradients=False, limit=limit)
    if limit:
        trials += build(map(sample.line, _beyond(length, document, row)), limit=limit)
    return trials


def length_limits(text: Any) -> dict[str, int]:
    """The numbers of tokens from which on a model computes something else, by their key in its configuration."""
    found: dict[str, Any] = {key: getattr(text, key, None) for key in LIMITS}
    parameters = getattr(text, "rope_parameters", None) or {}
    ropes = [parameters, *(value for value in parameters.values() if isinstance(value, Mapping))]
    scaled = [each for each in ropes if each.get("rope_type") in BY_LENGTH]
    original, key = LIMITS[-1], "max_position_embeddings"
    lengths = [int(each.get(original) or found[original] or getattr(text, key)) for each in scaled]
    found[original] = min(lengths) if lengths else None
    return {key: int(value) for key, value in found.items() if isinstance(value, int | float) and value > 0}


def positions_only(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Examples as the rows of a batch; shorter ones are continued by documents of one token."""
    import torch

    width = max(len(example["input_ids"]) for example in examples)
    return {
        name: torch.tensor([[*example[name], *[0] * (width - len(example[name]))] for example in examples])
        for name in ("input_ids", "position_ids")
    }


@dataclass(frozen=True)
class _Sample:
    """Some rows of the data, and their tokens.

    Attributes:
        rows: the rows.
        ids_S: their tokens, one row behind the other.
        packed: whether a row holds several documents, which restart its positions.
    """

    rows: list[dict[str, Any]]
    ids_S: np.ndarray
    packed: bool

    @classmethod
    def of(cls, data: Any, vocabulary: int) -> _Sample:
        if data is None:
            return cls([], np.arange(vocabulary), packed=True)
        indexed = hasattr(data, "select")
        rows = [data[n] for n in range(min(SAMPLED, len(data)))] if indexed else [*islice(iter(data), SAMPLED)]
        ids_S = np.concatenate([np.asarray(row["input_ids"]) for row in rows])
        return cls(rows, ids_S, "position_ids" in rows[0])

    def real(self, batch_size: int) -> list[list[dict[str, Any]]]:
        """The longest rows with several documents; or, without packing, a batch of the longest rows."""
        rows = [row for row in self.rows if not self.packed or len(_starts(row)) > 1]
        rows.sort(key=lambda row: len(row["input_ids"]), reverse=True)
        return [[row] for row in rows[:ROWS]] if self.packed else [rows[: min(max(batch_size, 2), 4)]]

    def short(self, lengths: Sequence[int]) -> list[dict[str, Any]]:
        """As `line`, without the first documents where all do not fit into the longest of the rows."""
        longest = max((len(row["input_ids"]) for row in self.rows), default=sum(lengths))
        while self.packed and sum(lengths) > longest and len(lengths) > 2:
            lengths = lengths[1:]
        return self.line(lengths)

    def line(self, lengths: Sequence[int]) -> list[dict[str, Any]]:
        """Documents of these lengths, in one example if rows are packed, else one example each."""
        parts = [(length,) for length in lengths] if not self.packed else [tuple(lengths)]
        offsets = iter(np.cumsum([0, *map(sum, parts)]).tolist())
        return [self._example(part, next(offsets)) for part in parts]

    def _example(self, lengths: Sequence[int], offset: int) -> dict[str, Any]:
        ids_T = self.ids_S[np.arange(offset, offset + sum(lengths)) % len(self.ids_S)].astype(np.int64)
        places_T = np.concatenate([np.arange(length) for length in lengths])
        like = self.rows[0] if self.rows else {"input_ids": []}
        columns = {"input_ids": ids_T, "labels": np.where(places_T, ids_T, -100)}
        columns |= {"position_ids": places_T} if self.packed else {}
        columns |= {"loss_weights": np.ones(len(ids_T), np.float32)} if "loss_weights" in like else {}
        as_lists = isinstance(like["input_ids"], list)
        return {name: column.tolist() if as_lists else column for name, column in columns.items()}

    def reach(self, data: Any, max_length: int) -> tuple[int, int]:
        """The number of tokens of the longest document, and of the longest row of a batch."""
        if not hasattr(data, "with_format"):
            return max_length, max_length
        from sftkit.data.columns import flatten_column

        document = row = 0
        arrow = data.with_format("arrow")
        for low in range(0, len(data), 1 << 14):
            table = arrow[low : low + (1 << 14)]
            row = max(row, int(np.diff(flatten_column(table, "input_ids")[1]).max()))
            if self.packed:
                document = max(document, int(flatten_column(table, "position_ids")[0].max()) + 1)
        return (document, row) if self.packed else (row, 2 * row)


@dataclass(frozen=True)
class _Builder:
    """Makes trials of lines: examples that share a row in the batch, with the lines that are collated at once."""

    collator: Collate
    at_once: int

    def __call__(
        self, lines: Iterable[list[dict[str, Any]]], gradients: bool = True, limit: str = ""
    ) -> Iterator[Trial]:
        lines = [line for line in lines if line]
        for low in range(0, len(lines), self.at_once):
            some = lines[low : low + self.at_once]
            batch = self.collator([example for line in some for example in line])
            flat_S = np.asarray(batch["input_ids"].cpu()).reshape(-1)
            documents: list[Placed] = []
            targets, end = [], 0
            for line in some:
                found, end = _placed(flat_S, line, end)
                target = max(range(min(1, len(found) - 1), len(found)), key=lambda number: len(found[number].ids))
                edges = {0, len(found) - 1} if limit else {len(found) - 1} - {0} if not gradients else set()
                chosen = sorted({target, *edges})
                targets.append(len(documents) + chosen.index(target))
                documents += [found[number] for number in chosen]
            yield Trial(batch, documents, targets if gradients else [], limit)


def _beyond(length: int, document: int, row: int) -> Iterator[tuple[int, ...]]:
    """Lengths of the documents of rows that exceed a length; within those of the longest document and row."""
    last = min(13, row - length)
    yield (*_split(min(length + OVER, row - last), document), last)
    long = min(length + OVER, document, row - 1)
    if long > length:
        yield min(5, row - long), long


def _split(tokens: int, longest: int) -> Iterator[int]:
    """Lengths of documents with this many tokens together, none longer than the longest."""
    while tokens > 0:
        yield min(tokens, longest)
        tokens -= longest


def _starts(example: Mapping[str, Any]) -> list[int]:
    """Where the documents of an example begin."""
    places_T = np.asarray(example.get("position_ids", range(len(example["input_ids"]))))
    return [int(start) for start in np.append(True, np.diff(places_T) != 1).nonzero()[0]]


def _placed(flat_S: np.ndarray, line: list[dict[str, Any]], low: int) -> tuple[list[Placed], int]:
    """The documents of a line in the batch, searched from ``low`` on, and where the line ends."""
    found = []
    for example in line:
        ids_T = np.asarray(example["input_ids"])
        low = _find(flat_S, ids_T, low)
        starts = _starts(example)
        for start, end in zip(starts, [*starts[1:], len(ids_T)], strict=True):
            found.append(Placed(ids_T[start:end].tolist(), low + start))
        low += len(ids_T)
    return found, low


def _find(flat_S: np.ndarray, ids_T: np.ndarray, low: int) -> int:
    candidates = np.flatnonzero(flat_S[low : len(flat_S) - len(ids_T) + 1] == ids_T[0]) + low
    for start in candidates.tolist():
        if np.array_equal(flat_S[start : start + len(ids_T)], ids_T):
            return int(start)
    raise UnsuitedBatchError("the collator's batch does not contain the tokens of its rows in their order")
