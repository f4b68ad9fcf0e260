# ruff: noqa: N803, N806 (suffixes are shapes)
"""Collators with the mistakes that their authors make. Each changes a good batch, or the examples before it is made.

Legend: B rows, T positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from sftkit.api import Plugin, dataclass, hookimpl


def narrower(batch, examples):
    return {**batch, "labels": batch["labels"][:, :-1]}


def shifted(batch, examples):
    return {**batch, "labels": torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)}


def every_token(batch, examples):
    return {**batch, "labels": batch["input_ids"].clone()}


def every_real_token(batch, examples):
    return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}


def labels_on_padding(batch, examples):
    padding_BT = batch["attention_mask"] == 0
    return {**batch, "labels": torch.where(padding_BT, batch["input_ids"], batch["labels"])}


def nothing_trained(batch, examples):
    return {**batch, "labels": torch.full_like(batch["labels"], -100)}


def beyond_the_vocabulary(batch, examples):
    return {**batch, "labels": torch.where(batch["labels"] == -100, -100, batch["labels"] + 100_000)}


def attends_to_padding(batch, examples):
    return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}


def hides_tokens(batch, examples):
    mask_BT = batch["attention_mask"].clone()
    mask_BT[:, 1:3] = 0
    return {**batch, "attention_mask": mask_BT}


def left_without_mask(batch, examples):
    shift_B = batch["input_ids"].shape[1] - batch["attention_mask"].sum(1)
    rolled = {
        name: torch.stack([row.roll(int(shift)) for row, shift in zip(batch[name], shift_B, strict=True)])
        for name in ("input_ids", "labels")
    }
    return rolled


def with_positions(function):
    def change(batch, examples):
        length = batch["input_ids"].shape[1]
        return {**batch, "position_ids": function(torch.arange(length).expand(len(examples), length))}

    return change


def fewer_rows(batch, examples):
    return {name: values[:-1] for name, values in batch.items()}


def reordered(batch, examples):
    return {name: values.flip(0) for name, values in batch.items()}


def reordered_ids(batch, examples):
    return {**batch, "input_ids": batch["input_ids"].flip(0)}


def cut(batch, examples):
    return {name: values[:, :6] for name, values in batch.items()}


def nan(batch, examples):
    return {**batch, "extra": torch.tensor([float("nan")] * len(examples))}


def lists(batch, examples):
    return {name: values.tolist() for name, values in batch.items()}


#: What a collator does to its batch, by name.
BATCHES = {
    "labels one narrower": narrower,
    "labels shifted": shifted,
    "labels of every token": every_token,
    "labels of every real token": every_real_token,
    "labels on padding": labels_on_padding,
    "labels of no token": nothing_trained,
    "labels out of the vocabulary": beyond_the_vocabulary,
    "no labels": lambda batch, _: {name: values for name, values in batch.items() if name != "labels"},
    "float labels": lambda batch, _: {**batch, "labels": batch["labels"].float()},
    "int32 labels": lambda batch, _: {**batch, "labels": batch["labels"].int()},
    "int32 input_ids": lambda batch, _: {**batch, "input_ids": batch["input_ids"].int()},
    "lists for tensors": lists,
    "is a tuple": lambda batch, _: tuple(batch.values()),
    "attends to padding": attends_to_padding,
    "hides tokens": hides_tokens,
    "pads on the left without a mask": left_without_mask,
    "positions that count down": with_positions(lambda positions_BT: positions_BT.flip(1).contiguous()),
    "positions of zero": with_positions(torch.zeros_like),
    "fewer rows": fewer_rows,
    "reorders rows": reordered,
    "reorders the rows of input_ids": reordered_ids,
    "cuts rows": cut,
    "NaN": nan,
}


def without_positions(batch, examples):
    return {name: values for name, values in batch.items() if name != "position_ids"}


def unbroken_positions(batch, examples):
    return {**batch, "position_ids": torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])}


def mask_beside_positions(batch, examples):
    return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}


def joined_without_positions(batch, examples):
    return {name: batch[name].flatten()[None] for name in ("input_ids", "labels")}


def first_labels(batch, examples):
    labels_BT = torch.where(batch["position_ids"] == 0, batch["input_ids"], batch["labels"])
    return {**batch, "labels": labels_BT}


#: What a collator does to a batch of packed rows, by name.
PACKED = {
    "drops position_ids": without_positions,
    "positions that do not restart": unbroken_positions,
    "a mask beside position_ids": mask_beside_positions,
    "joins rows without positions": joined_without_positions,
    "trains the first tokens of documents": first_labels,
}

#: What a collator does to a batch of rows with weights, by name.
WEIGHTED = {
    "drops loss_weights": lambda batch, _: {name: each for name, each in batch.items() if name != "loss_weights"},
    "float64 loss_weights": lambda batch, _: {**batch, "loss_weights": batch["loss_weights"].double()},
    "shifted loss_weights": lambda batch, _: {**batch, "loss_weights": batch["loss_weights"].roll(1, 1)},
    "negative loss_weights": lambda batch, _: {**batch, "loss_weights": -batch["loss_weights"]},
}


def pop_labels(examples):
    for example in examples:
        example["labels"] = example["labels"] * 0 - 100


def cut_examples(examples):
    examples.pop()


#: What a collator does to its examples before it makes the batch, by name.
EXAMPLES = {"overwrites the labels of its examples": pop_labels, "removes an example": cut_examples}


def only_last(examples):
    """Trains the last token of each row, as a collator of the user may."""
    from torch.nn.utils.rnn import pad_sequence

    ids = [torch.as_tensor(example["input_ids"]).long() for example in examples]
    labels = [row.clone().index_fill(0, torch.arange(len(row) - 1), -100) for row in ids]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=2),
        "labels": pad_sequence(labels, batch_first=True, padding_value=-100),
    }


#: The mistakes that only some batches have: whether one has it, from its number and its examples.
SOMETIMES = {
    "labels on padding, later": lambda number, examples: number > 2,
    "labels on padding, of short rows": lambda number, examples: all(len(each["input_ids"]) < 20 for each in examples),
}


@dataclasses.dataclass(frozen=True)
class Changed:
    """A collator that spoils the batches of another."""

    inner: Callable
    how: str
    calls: list = dataclasses.field(default_factory=list)

    def __call__(self, examples):
        self.calls.append(1)
        if self.how in SOMETIMES:
            batch = dict(self.inner(examples))
            return labels_on_padding(batch, examples) if SOMETIMES[self.how](len(self.calls), examples) else batch
        if self.how in EXAMPLES:
            batch = self.inner([dict(example) for example in examples])
            EXAMPLES[self.how](examples)
            return batch
        return {**BATCHES, **PACKED, **WEIGHTED}[self.how](dict(self.inner(examples)), examples)


@dataclass(frozen=True, kw_only=True)
class Batches(Plugin):
    """Makes batches with a mistake."""

    how: str

    @hookimpl(wrapper=True)
    def make_collator(self):
        inner = yield
        return None if self.how == "returns None" else Changed(inner, self.how)
