"""Examples as flat arrays: parts of them, and their hashes."""

from __future__ import annotations

import numpy as np
import pytest

from sftkit.data import stats
from sftkit.data.columns import Examples
from sftkit.data.stats import hash_documents

LENGTHS = [3, 0, 5, 1, 4, 0, 7]


def examples() -> Examples:
    offsets = np.append(0, np.cumsum(LENGTHS))
    ids = np.arange(offsets[-1], dtype=np.int32)
    labels = np.where(ids % 3 == 0, np.int32(-100), ids)
    return Examples(ids, labels, offsets, (ids % 4 + 1).astype(np.float32), None, (ids % 2).astype(np.int16))


def columns(some: Examples) -> list[list[list[float]]]:
    """The values of each example, by column."""
    bounds = list(zip(some.offsets_N1, some.offsets_N1[1:], strict=False))
    values = (some.ids_S, some.labels_S, some.all_weights_S, some.sources_S)
    return [[column[start:end].tolist() for start, end in bounds] for column in values]


@pytest.mark.parametrize("limit", [0, 1, 4, 7])
def test_cut_keeps_the_first_tokens_of_each_example(limit):
    expected = [[values[:limit] for values in column] for column in columns(examples())]
    assert columns(examples().cut(limit)) == expected


@pytest.mark.parametrize("keep", ["1111111", "0000000", "1010101", "0110010", "0000001"])
def test_where_keeps_whole_examples(keep):
    mask = np.array([each == "1" for each in keep])
    expected = [[values for values, kept in zip(column, mask, strict=True) if kept] for column in columns(examples())]
    assert columns(examples().where(mask)) == expected


def test_a_hash_is_a_polynomial_of_the_ids_however_many_are_hashed_at_once(monkeypatch):
    some, mask, factor = examples(), (1 << 64) - 1, 0x9E3779B97F4A7C15
    expected = []
    for ids in columns(some)[0]:
        total = len(ids)
        for place, token in enumerate(ids):
            mixed = (int(token) + 1) * 0xBF58476D1CE4E5B9 & mask
            total += (mixed ^ mixed >> 31) * pow(factor, place + 1, 1 << 64)
        expected.append(total & mask)
    for at_once in (1, 4, 1 << 15):
        monkeypatch.setattr(stats, "_CACHED", at_once)
        assert hash_documents(some.ids_S, some.offsets_N1).tolist() == expected
