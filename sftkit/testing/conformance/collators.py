# ruff: noqa: N803, N806 (suffixes are shapes)
"""Batches keep the contract of docs/collator.md: ids, labels, weights and documents of each row arrive in its place.

Legend: B rows of a batch, T their length, S = B * T.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from sftkit.data.columns import IGNORE_INDEX, LOSS_WEIGHTS
from sftkit.testing.conformance.checks import CheckFailed, check, require, skip
from sftkit.testing.conformance.pickling import pickled

if TYPE_CHECKING:
    from sftkit.testing.conformance.workbench import Workbench

#: Lengths of the rows of batches; a packed row is a list of its documents'.
BATCHES: tuple[tuple[int, ...], ...] = ((5, 9, 3, 9), (7,), (1, 4), (6, 6))
PACKED = ((4, 6, 3), (5, 8))


def rows_of(lengths: Sequence[int | Sequence[int]], weights: bool = False) -> list[dict[str, Any]]:
    """Rows as a run has them; those with several lengths hold so many documents. No token occurs twice near another."""
    rows, first = [], 10
    for each in lengths:
        documents = [each] if isinstance(each, int) else [*each]
        size = sum(documents)
        ids = ((np.arange(first, first + size) * 7) % 300 + 10).astype(np.int32)
        places = np.concatenate([np.arange(length) for length in documents]).astype(np.int32)
        row = {"input_ids": ids, "labels": np.where(places > 0, ids, IGNORE_INDEX).astype(np.int32)}
        if size > 3 and isinstance(each, int):
            row["labels"][:2] = IGNORE_INDEX  # a prompt
        if not isinstance(each, int):
            row["position_ids"] = places
        if weights:
            row[LOSS_WEIGHTS] = np.linspace(0.5, 2, size, dtype=np.float32)
        rows.append(row)
        first += size
    return rows


def _collator(bench: Workbench) -> Any:
    """The plugin's collator.

    Raises:
        CheckSkipped: if it leaves the batches of the kit's run to another plugin.
    """
    known = {"tokenizer": bench.tokenizer(), "processor": None, "config": bench.config}
    collator = bench.own("make_collator", **known)
    if collator is None:
        skip("it leaves the batches of the kit's run to another plugin")
    if bench.wraps("make_collator"):
        plain = bench.pipeline(bench.directory / "plain", plugin=False).stages().make_collator(known["tokenizer"])
        if collator == plain or type(collator) is type(plain):
            skip("it leaves the collator of the kit's run as it is")
    return collator


@check("make_collator")
def keys_and_types(bench: Workbench, hook: str) -> None:
    """A batch has input_ids and labels, int64 and [B, T]"""
    collator = _collator(bench)
    for lengths in BATCHES:
        _checked_keys(collator(rows_of(lengths)), lengths)


def _checked_keys(batch: Any, lengths: Sequence[Any]) -> None:
    import torch

    at = f"in a batch of rows of {', '.join(map(str, lengths))} tokens, "
    require(
        isinstance(batch, dict) or hasattr(batch, "keys"), f"{at}it returns {type(batch).__name__}", "return a dict"
    )
    for name in ("input_ids", "labels"):
        require(name in batch, f"{at}{name} is missing", "see docs/collator.md for the keys of a batch")
        value = batch[name]
        kind = f"{value.dtype} {[*value.shape]}" if torch.is_tensor(value) else type(value).__name__
        right = torch.is_tensor(value) and value.dtype == torch.int64 and value.dim() == 2
        require(right, f"{at}{name} is {kind}", "make it an int64 tensor [B, T]")
    shape = batch["input_ids"].shape
    for name in ("labels", "attention_mask", "position_ids", LOSS_WEIGHTS):
        if name in batch and (name != "attention_mask" or batch[name].dim() == 2):
            same = batch[name].shape == shape
            what = f"{at}{name} is {[*batch[name].shape]}, and input_ids are {[*shape]}"
            require(same, what, "give them the same shape, with labels unshifted")


@check("make_collator")
def rows_arrive(bench: Workbench, hook: str) -> None:
    """Ids and labels are those of the rows, in their order, and padding is neither trained nor shown"""
    collator = _collator(bench)
    for lengths in BATCHES:
        rows = rows_of(lengths)
        _checked_rows(collator(rows_of(lengths)), rows)


def _checked_rows(batch: Any, rows: list[dict[str, Any]]) -> None:
    ids_S, labels_S = (_flat(batch[name]) for name in ("input_ids", "labels"))
    inside_S = np.zeros(len(ids_S), bool)
    for number, (start, row) in enumerate(zip(_places(ids_S, rows), rows, strict=True), 1):
        at = slice(start, start + len(row["input_ids"]))
        inside_S[at] = True
        wrong = (labels_S[at] != row["labels"]) & (labels_S[at] != IGNORE_INDEX)  # it may train fewer tokens
        what = f"{int(wrong.sum())} of {len(wrong)} labels of row {number} are others than in the row"
        require(not wrong.any(), what, "copy the labels of the row, unshifted: the loss shifts them")
    if (labels_S == IGNORE_INDEX).all() and any((row["labels"] != IGNORE_INDEX).any() for row in rows):
        skip("it trains no token of the kit's rows")
    trained = labels_S[~inside_S] != IGNORE_INDEX
    require(not trained.any(), f"{int(trained.sum())} padding tokens are trained", f"label padding {IGNORE_INDEX}")
    mask = batch.get("attention_mask")
    if mask is not None and mask.shape == batch["input_ids"].shape:
        mask_S = _flat(mask) != 0
        require(mask_S[inside_S].all(), "attention_mask hides tokens of a row", "mask with 1 what is not padding")
        require(not mask_S[~inside_S].any(), "attention_mask shows padding", "mask padding with 0")


@check("make_collator")
def weights_arrive(bench: Workbench, hook: str) -> None:
    """loss_weights are kept, float32 and [B, T]"""
    import torch

    rows = rows_of(BATCHES[0], weights=True)
    del rows[2][LOSS_WEIGHTS]  # as in a stream
    batch = _collator(bench)([dict(row) for row in rows])
    fix = "pad loss_weights with 1 where an example has them, as docs/collator.md says"
    require(LOSS_WEIGHTS in batch, "the rows have loss_weights, and the batch has none", fix)
    weights = batch[LOSS_WEIGHTS]
    right = weights.dtype == torch.float32 and weights.shape == batch["input_ids"].shape
    require(right, f"loss_weights is {weights.dtype} {[*weights.shape]}", "make it float32, of the shape of input_ids")
    weights_S, ids_S = _flat(weights), _flat(batch["input_ids"])
    for number, (start, row) in enumerate(zip(_places(ids_S, rows), rows, strict=True), 1):
        size = len(row["input_ids"])
        same = np.array_equal(weights_S[start : start + size], row.get(LOSS_WEIGHTS, np.ones(size)))
        require(same, f"the weights of row {number} are others than in the row", fix)


@check("make_collator")
def input_stays(bench: Workbench, hook: str) -> None:
    """The rows that it gets are not changed"""
    collator = _collator(bench)
    for lengths in (BATCHES[0], PACKED):
        rows = rows_of(lengths)
        before = copy.deepcopy(rows)
        collator(rows)
        for number, (row, kept) in enumerate(zip(rows, before, strict=True), 1):
            changed = [key for key in {*row} | {*kept} if not np.array_equal(row.get(key, []), kept.get(key, []))]
            fix = "copy what you change: the rows are those of the data set"
            require(not changed, f"it changes {', '.join(changed)} of row {number} of its input", fix)


@check("make_collator")
def packed_rows_keep_documents(bench: Workbench, hook: str) -> None:
    """Packed rows keep positions that restart, and get no attention_mask"""
    rows = rows_of(PACKED)
    batch = _collator(bench)(rows_of(PACKED))
    _checked_keys(batch, PACKED)
    _checked_rows(batch, rows)
    fix = "copy position_ids, which say where documents begin; or raise a ConfigError for packed rows"
    require("position_ids" in batch, "the rows have position_ids, and the batch has none", fix)
    mask = batch.get("attention_mask")
    require(
        mask is None or mask.dim() == 4,
        "a batch of packed rows has an attention_mask",
        "leave it out: models would mix the documents",
    )
    ids_S, places_S = _flat(batch["input_ids"]), _flat(batch["position_ids"])
    for number, (start, row) in enumerate(zip(_places(ids_S, rows), rows, strict=True), 1):
        end = start + len(row["input_ids"])
        same = np.array_equal(places_S[start:end], row["position_ids"])
        require(same, f"position_ids of row {number} are {places_S[start:end].tolist()}", fix)
        width = batch["input_ids"].shape[1]
        follows = end % width and end < len(places_S) and places_S[end] == places_S[end - 1] + 1
        require(not follows, "padding continues the positions of a document", "restart them at 0 in padding")


@check("make_collator")
def documents_are_isolated(bench: Workbench, hook: str) -> None:
    """Logits of a document in a batch, padded or packed, are those of the document alone"""
    from sftkit.training.documents import difference_from_alone
    from sftkit.training.trials import Placed, Trial

    collator = _collator(bench)
    for lengths in (BATCHES[0], PACKED[:1]):
        rows, model = rows_of(lengths), bench.model()
        batch = collator(rows_of(lengths))
        documents = []
        for start, row in zip(_places(_flat(batch["input_ids"]), rows), rows, strict=True):
            places = row.get("position_ids", np.arange(len(row["input_ids"])))
            begins = [*np.flatnonzero(places == 0).tolist(), len(places)]
            for low, high in pairwise(begins):
                documents.append(Placed(row["input_ids"][low:high].tolist(), start + low))
        with bench.stages.training(model, bench.prepared.data.train, bench.prepared.collator):
            found = difference_from_alone(model, [Trial(batch, documents, [len(documents) - 1])])
        kind = "packed row" if lengths is not BATCHES[0] else "batch of several rows"
        fix = "give the model what keeps them apart: attention_mask for padding, position_ids for packed rows"
        require(found is None, f"in a {kind}: {found}", fix)


@check("make_collator")
def collates_elsewhere(bench: Workbench, hook: str) -> None:
    """It can be pickled, and works in the workers of a data loader"""
    from torch.utils.data import DataLoader

    collator = _collator(bench)
    again = pickled(collator, "the collator")
    expected, found = collator(rows_of(BATCHES[0])), again(rows_of(BATCHES[0]))
    drawn = not _equal(expected, collator(rows_of(BATCHES[0])))
    require(not drawn, "a second call makes another batch of the same rows", "draw at random with a seed from the rows")
    fix = "keep everything that it needs in its fields"
    require(_equal(expected, found), "the pickled collator makes another batch", fix)
    rows: Any = rows_of(BATCHES[0])
    (batch,) = DataLoader(rows, batch_size=len(rows), collate_fn=collator, num_workers=1)
    require(_equal(expected, batch), "it makes another batch in a worker", fix)


def _places(ids_S: np.ndarray, rows: list[dict[str, Any]]) -> list[int]:
    """Where the tokens of each row begin in the flattened batch.

    Raises:
        CheckFailed: if they are not there, in the order of the rows.
    """
    starts, low = [], 0
    for number, row in enumerate(rows, 1):
        ids = row["input_ids"]
        for start in range(low, len(ids_S) - len(ids) + 1):
            if np.array_equal(ids_S[start : start + len(ids)], ids):
                break
        else:
            fix = "copy all tokens of each row, and keep the order of the rows"
            raise CheckFailed(f"the batch does not contain the tokens of row {number} in its place", fix)
        starts.append(start)
        low = start + len(ids)
    return starts


def _flat(tensor: Any) -> np.ndarray:
    return np.asarray(tensor.cpu()).reshape(-1)


def _equal(left: Any, right: Any) -> bool:
    import torch

    def same(one: Any, other: Any) -> bool:
        return torch.equal(one, other) if torch.is_tensor(one) and torch.is_tensor(other) else bool(one == other)

    return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
