"""The order of training rows, and the batches of each process."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from sftkit.errors import ConfigError
from sftkit.training.order import BLOCK, Grouped, RowOrder, Shuffled, token_lengths
from sftkit.training.permutation import Permutation
from sftkit.training.randomness import rounds_at_random
from sftkit.training.sampler import Rebalanced, ReplicaBatches, Share, with_batches

ROWS = 20_000


def order_of(size: int, *key: int) -> np.ndarray:
    return Permutation(size, key).at(np.arange(size))


def batches_of(order: RowOrder, size: int, replicas: int, accumulation: int = 1, drop_last: bool = False):
    """The batches of each replica."""
    shares = [Share(size, replicas, replica, accumulation) for replica in range(replicas)]
    return [list(ReplicaBatches(order, share, drop_last)) for share in shares]


# The permutation.


@pytest.mark.parametrize("size", [*range(1, 70), 255, 256, 257, 999, 4096, 10_007, 65_537])
def test_every_number_comes_once_and_is_found_again(size):
    permutation = Permutation(size, [0, size])
    found = permutation.at(np.arange(size))
    assert np.array_equal(np.sort(found), np.arange(size))
    assert np.array_equal(permutation.positions(found), np.arange(size))


def test_an_order_of_many_rows_is_computed_at_any_position():
    permutation = Permutation(10**12, [7, 1])
    positions = np.array([0, 1, 10**12 - 1, 5 * 10**11])
    assert np.array_equal(permutation.positions(permutation.at(positions)), positions)


@pytest.mark.parametrize("size", [2, 3, 4, pytest.param(5, marks=pytest.mark.slow)])
def test_all_orders_of_few_rows_are_equally_likely(size):
    """Chi-squared over the seeds, at most five standard deviations above its mean."""
    seeds = 100 * math.factorial(size)
    counts = Counter(tuple(order_of(size, seed, 0).tolist()) for seed in range(seeds))
    found = sum((counts[order] - 100) ** 2 / 100 for order in itertools.permutations(range(size)))
    freedom = math.factorial(size) - 1
    assert found < freedom + 5 * math.sqrt(2 * freedom)


def statistics(order: np.ndarray) -> dict[str, float]:
    """What a shuffle is judged by; each has a mean of about 0 and a standard deviation of about 1."""
    size = len(order)
    ups = np.sum(np.diff(order) > 0)  # a shuffle has (n + 1) / 12 as the variance
    neighbours = np.sum(np.abs(np.diff(order)) == 1)  # as good as Poisson, with a mean of 2
    centred = (order - (size - 1) / 2) / (size / math.sqrt(12))
    at = np.arange(size)
    halves = np.histogram2d(at // (size // 16 + 1), order // (size // 16 + 1), bins=16)[0]
    return {
        "ups": (ups - (size - 1) / 2) / math.sqrt((size + 1) / 12),
        "neighbours": (neighbours - 2) / math.sqrt(2),
        "positions": np.corrcoef(at, order)[0, 1] * math.sqrt(size),
        "lag 1": np.mean(centred[1:] * centred[:-1]) * math.sqrt(size),
        "lag 2": np.mean(centred[2:] * centred[:-2]) * math.sqrt(size),
        "squares": np.mean(centred[math.isqrt(size) :] * centred[: -math.isqrt(size)]) * math.sqrt(size),
        "parts": (np.sum((halves - size / 256) ** 2 / (size / 256)) - 225) / math.sqrt(450),
        "fixed": np.sum(at == order) - 1.0,
    }


@pytest.mark.parametrize("size", [100, 4096, pytest.param(20_011, marks=pytest.mark.slow)])
def test_an_order_is_mixed_as_well_as_a_true_shuffle(size):
    """Means and deviations of eight statistics over 200 orders."""
    ours = [statistics(order_of(size, 5, epoch)) for epoch in range(200)]
    random = np.random.default_rng(0)
    theirs = [statistics(random.permutation(size)) for _ in range(200)]
    for name in ours[0]:
        one, two = (np.array([each[name] for each in found]) for found in (ours, theirs))
        error = math.sqrt((one.var() + two.var()) / 200)
        assert abs(one.mean() - two.mean()) < 4.5 * error, name
        assert 0.6 < (one.std() + 1e-9) / (two.std() + 1e-9) < 1.6, name


def test_orders_of_other_epochs_and_seeds_are_unrelated():
    orders = [order_of(ROWS, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    for one, two in itertools.combinations(orders, 2):
        assert np.sum(one == two) < 10
        assert abs(np.corrcoef(one, two)[0, 1]) < 5 / math.sqrt(ROWS)


# The orders.


def test_rows_of_similar_length_follow_each_other_and_the_longest_is_first():
    lengths = np.random.default_rng(0).integers(1, 500, 2003).astype(np.int32)
    lengths[1234] = 900
    order = Grouped(lengths, 8, seed=0)
    for epoch in (0, 1):
        order.set_epoch(epoch)
        rows = np.array(list(order))
        assert np.array_equal(np.sort(rows), np.arange(2003))
        assert rows[0] == 1234
        spread = np.mean([np.ptp(lengths[rows[start : start + 8]]) for start in range(8, 2000, 8)])
        assert spread < 20
        assert np.array_equal(order.at([5, 2002, 1999]), rows[[5, 2002, 1999]])


def test_an_order_depends_on_the_seed_and_the_epoch_alone():
    order = Shuffled(500, 3)
    first = list(order)
    order.set_epoch(1)
    second = list(order)
    assert first != second
    order.set_epoch(0)
    assert list(order) == first == list(Shuffled(500, 3))
    assert list(RowOrder(5)) == [0, 1, 2, 3, 4]


def test_lengths_are_those_of_the_rows():
    rows = [{"input_ids": [0] * (number % 7)} for number in range(BLOCK + 10)]
    expected = [number % 7 for number in range(BLOCK + 10)]
    made = Dataset.from_list(rows)
    assert token_lengths(rows).tolist() == token_lengths(made).tolist() == expected
    assert token_lengths(made.select([8, 2, 13])).tolist() == [1, 2, 6]
    assert token_lengths(made).dtype == np.int32


# The batches of each process.


@pytest.mark.parametrize("kind", ["random", "sequential", "group_by_length", "batch_rebalance"])
@pytest.mark.parametrize(("rows", "size", "replicas", "accumulation"), [
    (9, 2, 2, 1), (9, 2, 4, 1), (1, 4, 3, 2), (16, 2, 4, 2), (17, 2, 4, 2), (5, 1, 8, 1), (BLOCK + 3, 3, 2, 4),
])  # fmt: skip
def test_every_row_is_trained_once_and_shares_differ_by_one_row(kind, rows, size, replicas, accumulation):
    lengths = np.random.default_rng(0).integers(1, 50, rows).astype(np.int32)
    share = [Share(size, replicas, replica, accumulation) for replica in range(replicas)]
    orders = {"sequential": RowOrder(rows), "group_by_length": Grouped(lengths, share[0].step, 0)}
    order = orders.get(kind, Shuffled(rows, 0))
    rebalanced = kind == "batch_rebalance"
    made = [Rebalanced(order, each, False, lengths) if rebalanced else ReplicaBatches(order, each) for each in share]
    found = [list(each) for each in made]
    assert {len(each) for each in found} == {len(made[0])}
    trained = [row for each in found for batch in each for row in batch if row >= 0]
    assert sorted(trained) == list(range(rows))
    for step, together in enumerate(zip(*found, strict=True)):
        counts = [sum(row >= 0 for row in batch) for batch in together]
        assert all(together)
        if not rebalanced:
            assert max(counts) - min(counts) <= 1, step
            assert max(counts) <= size


@pytest.mark.parametrize("kind", [Shuffled, lambda rows, seed: Grouped(np.arange(rows, dtype=np.int32) % 9, 24, seed)])
def test_a_step_has_the_same_rows_on_any_number_of_replicas(kind):
    def steps(size: int, replicas: int, accumulation: int) -> list[set[int]]:
        found = batches_of(kind(1001, 0), size, replicas, accumulation)
        batches = [[row for batch in each for row in batch if row >= 0] for each in zip(*found, strict=True)]
        together = [batches[start : start + accumulation] for start in range(0, len(batches), accumulation)]
        return [{row for batch in each for row in batch} for each in together]

    expected = steps(24, 1, 1)
    assert expected == steps(6, 4, 1) == steps(3, 2, 4) == steps(1, 8, 3)


@pytest.mark.parametrize("rebalanced", [False, True])
@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_after_a_row_are_those_of_a_whole_epoch(rebalanced, drop_last):
    share = Share(3, 2, 1, 2)
    lengths = np.arange(50, dtype=np.int32) + 1

    def made() -> ReplicaBatches:
        order = Shuffled(50, 0)
        return Rebalanced(order, share, drop_last, lengths) if rebalanced else ReplicaBatches(order, share, drop_last)

    whole = list(made())
    for number in range(0, len(whole) + 1, 2):
        later = made()
        later.seek(later.rows(number))
        assert later.before(later.rows(number)) == number or number == len(whole)
        assert list(later) == whole[number:]
        assert list(later) == whole  # in the next epoch


def test_batches_after_any_row_have_all_later_rows_once():
    order = Shuffled(50, 0)
    expected = list(order)
    for first in range(51):
        rows, counts = [], set()
        for replica in range(4):
            batches = ReplicaBatches(order, Share(3, 4, replica))
            batches.seek(first)
            found = list(batches)
            counts.add(len(found))
            rows += [row for batch in found for row in batch if row >= 0]
        assert sorted(rows) == sorted(expected[first:])
        assert counts == {len(batches) - batches.before(first) if first < 50 else 0}


def test_the_last_rows_are_left_out_if_that_is_asked_for():
    order = Shuffled(27, 0)
    found = batches_of(order, 2, 4, drop_last=True)
    assert [len(each) for each in found] == [3] * 4
    assert sorted(row for each in found for batch in each for row in batch) == sorted(list(order)[:24])


def test_the_batches_of_many_rows_take_no_memory():
    tracemalloc.start()
    try:
        batches = ReplicaBatches(Shuffled(100_000_000, 0), Share(4, 8, 3))
        assert len(next(iter(batches))) == 4
        batches.seek(99_999_904)
        assert len(list(iter(batches))) == 3
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


# Rows that fill in.


def collate(examples: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor([example[name] for example in examples]) for name in examples[0]}


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_nothing_is_learned_from_a_row_that_fills_in(workers):
    rows = [{"input_ids": [number] * 3, "labels": [number] * 3} for number in range(5)]
    loader = DataLoader(rows, collate_fn=collate, num_workers=workers)
    *_, first = with_batches(loader, ReplicaBatches(RowOrder(5), Share(2, 2, 0)))
    *_, last = with_batches(loader, ReplicaBatches(RowOrder(5), Share(2, 2, 1)))
    assert first["labels"].tolist() == [[4, 4, 4]]
    assert last["labels"].tolist() == [[-100, -100, -100]]
    assert last["input_ids"].tolist() == [[4, 4, 4]]


def test_a_collator_without_labels_cannot_fill_in():
    rows = [{"input_ids": [number]} for number in range(3)]
    loader = with_batches(DataLoader(rows, collate_fn=collate), ReplicaBatches(RowOrder(3), Share(1, 2, 1)))
    with pytest.raises(ConfigError, match="no row in the last step"):
        list(loader)


# Random numbers.


def test_an_optimizer_that_rounds_at_random_is_noticed():
    assert rounds_at_random("block_size=64, bf16_stochastic_round=True")
    assert not any(map(rounds_at_random, (None, "", "block_size=64", "bf16_stochastic_round=false")))
