# ruff: noqa: N803, N806 (suffixes are shapes)
"""Whether a batch is made of its examples: the contract of a collator, as ``docs/collator.md`` describes it.

Legend: B rows, T positions, L tokens of an example.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from sftkit.data.columns import IGNORE_INDEX, LOSS_WEIGHTS
from sftkit.errors import Problem
from sftkit.training.placed import COLUMNS, MASK, POSITIONS, Given, NotPlacedError, Placed, placed_examples

ROW_LENGTHS = "row_lengths"
FIX_ROWS = "keep the tokens and the order of the examples; change texts in a formatter"
FIX_LABELS = "copy the examples' labels; -100 for tokens that are not trained, and for padding"
FIX_POSITIONS = "use a collator that keeps position_ids, and returns no attention_mask beside them"


def form_problem(batch: Any, examples: Sequence[Mapping[str, Any]]) -> Problem | None:
    """What is wrong with keys, dtypes and shapes of a batch; None if nothing is. Reads no values."""
    return next(_form_problems(batch, examples), None)


def value_problem(batch: Mapping[str, Any], given: Given, examples: Sequence[Mapping[str, Any]]) -> Problem | None:
    """What is wrong with the values of a batch whose form is right; None if nothing is.

    Args:
        batch: the batch.
        given: the examples before the collator was called.
        examples: the examples after it.
    """
    if changed := given.changed(examples):
        return Problem(changed, fix="copy what is changed: other batches are made of the same examples")
    values = {name: value.detach().cpu().numpy() for name, value in batch.items() if name in COLUMNS and _is_2d(value)}
    try:
        placed = list(placed_examples(values, given.examples, ROW_LENGTHS in batch))
    except NotPlacedError as error:
        return Problem(str(error), fix=FIX_ROWS)
    return next(_value_problems(batch, values, placed), None)


def trained_fewer(batch: Mapping[str, Any], examples: Sequence[Mapping[str, Any]]) -> str:
    """That fewer tokens are trained than the examples say; empty if all are. For a batch without a problem."""
    wanted = sum(int((np.asarray(each["labels"])[1:] != IGNORE_INDEX).sum()) for each in examples if "labels" in each)
    found = int((batch["labels"] != IGNORE_INDEX).sum())
    return f"it trains {found:,} of the {wanted:,} trained tokens of a batch" if found < wanted else ""


def _is_2d(value: Any) -> bool:
    return torch.is_tensor(value) and value.dim() == 2


def _form_problems(batch: Any, examples: Sequence[Mapping[str, Any]]) -> Iterator[Problem]:
    if not isinstance(batch, Mapping):
        yield Problem(f"it returns an object of type {type(batch).__name__}", fix="return a dict of tensors by name")
        return
    if "labels" not in batch:
        fix = "add labels to its batches, with -100 for untrained tokens"
        yield Problem(f"the collator gives no labels, only {', '.join(batch)}", fix=fix)
        return
    if "input_ids" not in batch:
        yield Problem(f"the collator gives no input_ids, only {', '.join(batch)}", fix="add input_ids to its batches")
        return
    ids_BT, packed = batch["input_ids"], any(POSITIONS in example for example in examples)
    for name in ("input_ids", "labels", POSITIONS):
        if name in batch and (wrong := _not_of(batch[name], torch.int64)):
            yield Problem(f"{name} is {wrong}", fix="return a tensor of type int64 (torch.long)")
            return
    if ids_BT.dim() != 2 or batch["labels"].shape != ids_BT.shape:
        shapes = f"{tuple(batch['labels'].shape)}, and input_ids the shape {tuple(ids_BT.shape)}"
        fix = "return both as [B, T]; labels are not shifted, and end where input_ids end"
        yield Problem(f"labels have the shape {shapes}", fix=fix)
        return
    rows, tokens = len(ids_BT), sum(len(example["input_ids"]) for example in examples)
    one_row = rows == 1 and (ROW_LENGTHS in batch or ids_BT.shape[1] >= tokens)
    if rows != len(examples) and not one_row:
        yield Problem(f"{rows} rows were made of {len(examples)} examples", fix="make one row of each example")
    if packed and POSITIONS not in batch:
        what = "it drops position_ids, without which the documents of a packed row see each other"
        yield Problem(what, fix=FIX_POSITIONS)
    if rows != len(examples) and one_row and POSITIONS not in batch:
        what = "it joins examples in one row without position_ids, so that they see each other"
        yield Problem(what, fix=FIX_POSITIONS)
    if packed and _is_2d(batch.get(MASK)):
        what = (
            "it returns an attention_mask beside the position_ids of packed rows, whose documents then see each other"
        )
        yield Problem(what, fix=FIX_POSITIONS)
    if LOSS_WEIGHTS not in batch and any(LOSS_WEIGHTS in example for example in examples):
        what = f"the data has a weight for each token, and the batch has no {LOSS_WEIGHTS}"
        fix = f"use a collator that pads {LOSS_WEIGHTS}, or remove the weights from the data"
        yield Problem(what, fix=fix)
    if LOSS_WEIGHTS in batch:
        weights_BT = batch[LOSS_WEIGHTS]
        if wrong := _not_of(weights_BT, torch.float32):
            yield Problem(f"{LOSS_WEIGHTS} is {wrong}", fix="return a tensor of type float32")
        elif weights_BT.shape != ids_BT.shape:
            what = f"{LOSS_WEIGHTS} has the shape {tuple(weights_BT.shape)}, and input_ids {tuple(ids_BT.shape)}"
            yield Problem(what, fix="return one weight for each token, and 1 for padding")


def _not_of(value: Any, dtype: torch.dtype) -> str:
    if not torch.is_tensor(value):
        return f"no tensor, but of type {type(value).__name__}"
    return "" if value.dtype == dtype else f"of type {str(value.dtype).removeprefix('torch.')}"


def _value_problems(
    batch: Mapping[str, Any], values: Mapping[str, np.ndarray], placed: Sequence[Placed]
) -> Iterator[Problem]:
    inside_BT = np.zeros(values["input_ids"].shape, bool)
    for each in placed:
        inside_BT[each.row, each.at_L] = True
    yield from _mask_problems(values, inside_BT)
    yield from _label_problems(values["labels"], inside_BT, placed)
    yield from _position_problems(values, placed)
    if LOSS_WEIGHTS in values:
        yield from _weight_problems(values[LOSS_WEIGHTS], values["labels"], placed)
    for name, value in batch.items():
        checked = torch.is_tensor(value) and value.is_floating_point() and not _is_mask(name, value)
        if checked and not bool(value.isfinite().all()):
            yield Problem(f"{name} has values that are not finite", fix=f"compute {name} without NaN and infinity")
    for name, share_B in (batch.get("row_shares") or {}).items():
        if share_B is not None and int(share_B.sum()) != len(batch[name]):
            what = f"row_shares has {int(share_B.sum())} entries of {name}, and the batch {len(batch[name])}"
            yield Problem(what, fix=f"return the number of entries of {name} of each row, or None")


def _is_mask(name: str, value: Any) -> bool:
    return name == MASK and value.dim() != 2  # an additive mask has infinite values


def _mask_problems(values: Mapping[str, np.ndarray], inside_BT: np.ndarray) -> Iterator[Problem]:
    if MASK not in values:
        # with positions, padding is a document of its own
        if POSITIONS not in values and (inside_BT.argmax(1) > 0).any():
            what = "rows are padded on the left without an attention_mask, so that tokens see the padding"
            yield Problem(what, fix="return an attention_mask, 0 for padding, or pad on the right")
        return
    shown_BT = values[MASK] != 0
    if over := int((shown_BT & ~inside_BT).sum()):
        what = f"attention_mask is not 0 at {over:,} positions of a batch that are padding or hidden"
        yield Problem(what, fix="return 1 for the tokens of the examples, and 0 for padding")
    elif hidden := int((inside_BT & ~shown_BT).sum()):
        what = f"attention_mask hides {hidden:,} tokens of the examples of a batch"
        yield Problem(what, fix="return 1 for the tokens of the examples, and 0 for padding")


def _label_problems(labels_BT: np.ndarray, inside_BT: np.ndarray, placed: Sequence[Placed]) -> Iterator[Problem]:
    if padding := int((labels_BT[~inside_BT] != IGNORE_INDEX).sum()):
        yield Problem(f"{padding:,} labels of a batch train padding", fix=FIX_LABELS)
        return
    wanted = found = unmasked = other = shifted = 0
    for each in placed:
        want_L, got_L = each.example["labels"], labels_BT[each.row, each.at_L]
        free = 0 if each.joined else 1  # nothing precedes the first token of a row, so its label has no effect
        trained_L = got_L != IGNORE_INDEX
        trained_L[:free] = False
        wrong_L = trained_L & (got_L != want_L)
        unmasked += int((wrong_L & (want_L == IGNORE_INDEX)).sum())
        other += int((wrong_L & (want_L != IGNORE_INDEX)).sum())
        wanted, found = wanted + int((want_L[free:] != IGNORE_INDEX).sum()), found + int(trained_L.sum())
        shifted += bool(wrong_L.any()) and np.array_equal(got_L[:-1], want_L[1:])
    if shifted:
        what = "labels are shifted by one: the label of a position is its own token, and the loss shifts them"
        yield Problem(what, fix=FIX_LABELS)
    elif unmasked:
        what = f"{unmasked:,} labels of a batch train tokens that the formatter does not train"
        yield Problem(what, fix=FIX_LABELS)
    elif other:
        yield Problem(f"{other:,} labels of a batch are other tokens than those of the examples", fix=FIX_LABELS)
    elif wanted and not found:
        yield Problem(f"no token of a batch is trained, and its examples train {wanted:,}", fix=FIX_LABELS)


def _position_problems(values: Mapping[str, np.ndarray], placed: Sequence[Placed]) -> Iterator[Problem]:
    if POSITIONS not in values:
        return
    positions_BT = np.broadcast_to(values[POSITIONS], values["input_ids"].shape)
    for number, each in enumerate(placed, start=1):
        found_L = positions_BT[each.row, each.at_L]
        if POSITIONS in each.example:
            if not np.array_equal(found_L, each.example[POSITIONS]):
                what = f"position_ids of example {number} of a batch do not restart where its documents begin"
                yield Problem(what, fix="copy the examples' position_ids")
                return
        elif (np.diff(found_L) != 1).any() or (each.joined and found_L[:1].any()):
            what = f"position_ids of example {number} of a batch do not count its tokens"
            yield Problem(what, fix="count from 0 at the first token of each example")
            return


def _weight_problems(weights_BT: np.ndarray, labels_BT: np.ndarray, placed: Sequence[Placed]) -> Iterator[Problem]:
    if not np.isfinite(weights_BT).all() or (weights_BT < 0).any():
        yield Problem(f"{LOSS_WEIGHTS} has values below 0, or not finite", fix="return weights of at least 0")
        return
    for number, each in enumerate(placed, start=1):
        trained_L = labels_BT[each.row, each.at_L] != IGNORE_INDEX
        found_L = weights_BT[each.row, each.at_L]
        if LOSS_WEIGHTS in each.example and (found_L != each.example[LOSS_WEIGHTS])[trained_L].any():
            what = f"{LOSS_WEIGHTS} of example {number} of a batch are other weights than its own"
            yield Problem(what, fix=f"copy the examples' {LOSS_WEIGHTS}")
            return
