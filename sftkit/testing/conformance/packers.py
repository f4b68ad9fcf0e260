"""Packers rearrange documents, and lose none."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from sftkit.data.columns import LOSS_WEIGHTS, Examples, flatten_column
from sftkit.data.counts import Counts
from sftkit.testing.conformance.checks import CheckFailed, check, require, skip
from sftkit.testing.conformance.pickling import pickled

if TYPE_CHECKING:
    from sftkit.testing.conformance.workbench import Workbench

DOCUMENTS = 40
EACH = "put each document into exactly one row, whole"


def _examples(longest: int, weights: bool = False, documents: int = DOCUMENTS) -> Examples:
    """Documents of many lengths, each with tokens of its own."""
    lengths = np.random.default_rng(0).integers(2, longest + 1, documents)
    lengths[0] = longest
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = np.arange(offsets[-1], dtype=np.int32)
    labels = ids.copy()
    labels[offsets[:-1]] = -100
    labels[ids % 5 == 0] = -100  # some tokens are not trained
    return Examples(ids, labels, offsets, (1 + ids % 3).astype(np.float32) if weights else None)


def _packer(bench: Workbench, counts: Counts) -> Any:
    packer = bench.own("make_packer", split="train", config=bench.config, counts=counts)
    return skip("it leaves the rows of the kit's run single") if packer is None else packer


def _packed(bench: Workbench, weights: bool = False, documents: int = DOCUMENTS) -> tuple[Any, Examples, list[Any]]:
    """The packer, the examples, and the rows: a mapping of columns to arrays each."""
    counts = Counts()
    packer = _packer(bench, counts)
    longest = bench.config.data.max_length
    examples = _examples(longest * 2 if packer.cuts_documents else longest, weights, documents)
    return packer, examples, _rows(packer(examples))


def _rows(tables: Any) -> list[dict[str, Any]]:
    rows = []
    for table in tables:
        missing = {"input_ids", "labels", "position_ids"} - {*table.column_names}
        require(not missing, f"its tables lack {', '.join(sorted(missing))}", "make them with examples_table")
        columns = {name: flatten_column(table, name) for name in table.column_names if name != "attached"}
        for number in range(len(table)):
            rows.append(
                {name: values[offsets[number] : offsets[number + 1]] for name, (values, offsets) in columns.items()}
            )
    return rows


def _documents(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The documents in rows, by the places where positions restart."""
    found = []
    for row in rows:
        places = row["position_ids"]
        borders = [*np.flatnonzero(np.append(True, np.diff(places) != 1)).tolist(), len(places)]
        for low, high in pairwise(borders):
            found.append({name: values[low:high] for name, values in row.items()})
    return found


@check("make_packer")
def rows_fit(bench: Workbench, hook: str) -> None:
    """Rows have at most data.max_length tokens"""
    _, _, rows = _packed(bench)
    longest, most = max((len(row["input_ids"]) for row in rows), default=0), bench.config.data.max_length
    require(longest <= most, f"a row has {longest} tokens, with max_length {most}", "begin a new row before that")
    require(rows, "it makes no rows", EACH)


@check("make_packer")
def no_document_is_lost(bench: Workbench, hook: str) -> None:
    """Each document is in one row, whole, or what is cut is counted"""
    for documents in (DOCUMENTS, 1):
        packer, examples, rows = _packed(bench, documents=documents)
        ids = np.concatenate([np.zeros(0, np.int32), *(row["input_ids"] for row in rows)])
        twice = [token for token, times in Counter(ids.tolist()).items() if times > 1]
        require(not twice, f"{len(twice)} of {len(examples.ids_S)} tokens are in several places", EACH)
        lost = len(examples.ids_S) - len(ids)
        if packer.cuts_documents or not getattr(packer, "keeps_tokens", True):
            counts = Counts()
            list(_packer(bench, counts)(examples))
            counted = sum(sum(counter.values()) for counter in counts.by_split.values())
            require(lost <= 0 or counted, f"{lost} tokens are lost, and nothing is counted", "counts.add what is lost")
            continue
        require(lost <= 0, f"{lost} of {len(examples.ids_S)} tokens are lost", EACH)
        kept = Counter(tuple(document["input_ids"].tolist()) for document in _documents(rows))
        borders = pairwise(examples.offsets_N1)
        expected = Counter(tuple(examples.ids_S[low:high].tolist()) for low, high in borders)
        changed = sum((expected - kept).values())
        what = f"{changed} of {documents} documents are cut, joined, or without positions that restart at 0"
        require(not changed, what, f"{EACH}, with position_ids that restart at 0 in each")


@check("make_packer")
def labels_stay(bench: Workbench, hook: str) -> None:
    """Labels stay with their tokens, and the first of each document is -100"""
    _, examples, rows = _packed(bench)
    for document in _documents(rows):
        ids, labels = document["input_ids"], document["labels"]
        fix = "copy the labels with the tokens, and set the first of each document to -100"
        require(labels[0] == -100, "the first token of a document is trained: it would be predicted by another", fix)
        require((labels[1:] == examples.labels_S[ids[1:]]).all(), "labels are not those of their tokens", fix)


@check("make_packer")
def weights_stay(bench: Workbench, hook: str) -> None:
    """Weights of tokens are kept"""
    _, examples, rows = _packed(bench, weights=True)
    assert examples.weights_S is not None
    fix = "pass weights_S to examples_table"
    for row in rows:
        require(LOSS_WEIGHTS in row, "the examples have weights_S, and its tables have no loss_weights", fix)
        trained = row["labels"] != -100
        same = (row[LOSS_WEIGHTS] == examples.weights_S[row["input_ids"]])[trained]
        require(same.all(), "weights are not those of their tokens", fix)


@check("make_packer")
def packs_again(bench: Workbench, hook: str) -> None:
    """It can be pickled, and packs the same rows again"""
    packer, examples, rows = _packed(bench)
    for what, again in {"a second call": packer, "the pickled packer": pickled(packer, "the packer")}.items():
        found = _rows(again(examples))
        same = len(found) == len(rows) and all(
            np.array_equal(one["input_ids"], other["input_ids"]) for one, other in zip(rows, found, strict=True)
        )
        fix = "draw from a generator with a fixed seed, and keep nothing between calls"
        if not same:
            raise CheckFailed(f"{what} packs the same examples into other rows", fix)
