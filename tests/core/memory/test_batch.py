"""The largest batch of a run."""

from __future__ import annotations

from types import SimpleNamespace

from datasets import Dataset

from sftkit.memory.batch import largest_batch
from sftkit.testing import tiny_config


def run(rows, collator, **sections):
    return SimpleNamespace(data=SimpleNamespace(train=rows), collator=collator, config=tiny_config(**sections))


def test_the_largest_batch_has_the_longest_rows():
    rows = Dataset.from_list([{"input_ids": [1] * n, "labels": [1] * n} for n in (3, 9, 5, 7, 1)])

    def collator(examples):
        return {"lengths": sorted(len(example["input_ids"]) for example in examples)}

    assert largest_batch(run(rows, collator, train={"per_device_train_batch_size": 3})) == {"lengths": [5, 7, 9]}


def test_the_largest_batch_of_a_stream_has_rows_of_full_length():
    stream = iter([{"input_ids": [1, 2, 3], "labels": [-100, 2, 3]}])
    options = {"train": {"per_device_train_batch_size": 2}, "data": {"max_length": 7}}
    (one, two) = largest_batch(run(stream, lambda examples: {"rows": examples}, **options))["rows"]
    assert one == two == {"input_ids": [1, 2, 3, 1, 2, 3, 1], "labels": [-100, 2, 3, -100, 2, 3, -100]}
