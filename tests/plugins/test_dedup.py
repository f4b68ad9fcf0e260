"""Duplicates are those of a brute-force computation; near duplicates those of all pairs, but for a measured share."""

from __future__ import annotations

import json
import random
import re

import pytest

from sftkit import Pipeline
from sftkit.errors import ConfigError, DataError
from sftkit.testing import CHATML, run_problems, tiny_conversations, tiny_model, tiny_tokenizer
from sftkit_plugins.dedup import Dedup
from sftkit_plugins.dedup.seen import SeenDigests


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))


def decisions(plugin, rows, size=7):
    """What the filter decides on rows, some at a time: None, or the number of the earlier row."""
    names = list(rows[0])
    made = plugin.filter_rows(names)
    batches = [rows[at : at + size] for at in range(0, len(rows), size)]
    found = [each for some in batches for each in made({name: [row[name] for row in some] for name in names})]
    return [each and (each.reason, each.earlier) for each in found]


def random_rows(number, seed=0):
    chosen = random.Random(seed)
    words = ["red", "Red", "RED ", " red", "green", "blue\n", None]
    return [{"id": at, "a": chosen.choice(words), "b": [{"c": chosen.choice(words)}]} for at in range(number)]


def brute_force(rows, columns, normal=lambda text: text):
    def plain(value):
        if isinstance(value, str):
            return normal(value)
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items() if inner is not None}
        return [plain(inner) for inner in value] if isinstance(value, list) else value

    keys = [json.dumps(plain({name: row[name] for name in columns})) for row in rows]
    return [None if keys.index(key) == at else ("duplicate", keys.index(key)) for at, key in enumerate(keys)]


def normal(ignore_case, ignore_space):
    def changed(text):
        text = re.sub(r"\s+", " ", text).strip() if ignore_space else text
        return text.lower() if ignore_case else text

    return changed


@pytest.mark.parametrize("ignore_case", [False, True])
@pytest.mark.parametrize("ignore_space", [False, True])
def test_duplicates_are_those_of_a_comparison_with_every_earlier_row(ignore_case, ignore_space):
    rows = random_rows(200)
    plugin = Dedup(columns=["a", "b"], ignore_case=ignore_case, ignore_space=ignore_space)
    expected = brute_force(rows, ["a", "b"], normal(ignore_case, ignore_space))
    assert decisions(plugin, rows) == expected
    assert decisions(plugin, rows, size=200) == expected
    assert decisions(Dedup(), rows) == [None] * 200  # the column id differs


def test_a_digest_and_its_row_take_16_bytes_and_are_found_again():
    seen = SeenDigests()
    digests = [number.to_bytes(16, "little") for number in range(1, 20_001)]  # of which some end with zeros
    for at in range(0, 20_000, 1000):
        assert seen.add(digests[at : at + 1000]) == [None] * 1000
    assert seen.nbytes == 16 * 20_000
    assert seen.add(digests[::-1]) == list(range(20_000))[::-1]
    assert seen.nbytes == 16 * 20_000


def similar_texts(number, seed=0):
    """Texts of which many are others with some words changed."""
    chosen, texts = random.Random(seed), []
    for _ in range(number):
        if texts and chosen.random() < 0.6:
            words = chosen.choice(texts).split()
            for at in chosen.sample(range(len(words)), chosen.randint(0, 6)):
                words[at] = f"w{chosen.randrange(500)}"
        else:
            words = [f"w{chosen.randrange(500)}" for _ in range(chosen.randint(20, 80))]
        texts.append(" ".join(words))
    return texts


def ngrams(text, n):
    words = text.split()
    return {tuple(words[at : at + n]) for at in range(len(words) - n + 1)}


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_near_duplicates_are_those_of_all_pairs(threshold):
    texts = similar_texts(300)
    sets, kept, expected = [ngrams(text, 3) for text in texts], [], set()
    for at, own in enumerate(sets):
        if any(len(own & sets[other]) / len(own | sets[other]) >= threshold for other in kept):
            expected.add(at)
        else:
            kept.append(at)
    found = decisions(Dedup(near=threshold, ngram=3), [{"text": text} for text in texts])
    dropped = {at for at, each in enumerate(found) if each}
    for at in dropped:
        other = found[at][1]
        assert len(sets[at] & sets[other]) / len(sets[at] | sets[other]) >= threshold
        assert found[other] is None or found[at][0] == "duplicate"
    assert len(dropped & expected) >= 0.97 * len(expected) > 20


def test_near_duplicates_do_not_depend_on_batches():
    rows = [{"text": text} for text in similar_texts(100)]
    plugin = Dedup(near=0.5, ngram=3)
    assert decisions(plugin, rows, size=1) == decisions(plugin, rows, size=64)


def test_case_and_punctuation_do_not_matter_to_near_duplicates():
    rows = [
        {"text": text} for text in ("What is 1 + 1?", "what is 1 1", "什么是机器学习", "什么是机器学习。", "+", "-")
    ]
    found = [each and each[0] for each in decisions(Dedup(near=0.9), rows)]
    assert found == [None, "near duplicate", None, "near duplicate", None, None]


def test_a_run_keeps_the_first_of_each(tmp_path):
    rows = tiny_conversations(10)
    run = Pipeline(
        model=tiny_model(),
        tokenizer=tiny_tokenizer(chat_template=CHATML),
        data=[*rows, *rows[:4]],
        plugins=["dedup"],
        train={"use_cpu": True},
    )
    data = run.prepare().data
    assert len(data.train) == 10
    assert data.counts.by_split["train"]["rows dropped by dedup: duplicate"] == 4
    assert [row.detail for row in data.dropped["train"]] == [f"repeats data.train, row {at}" for at in range(1, 5)]


def test_columns_that_are_not_there_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"plugin dedup, option columns: .* 'promt' -> did you mean 'prompt'"):
        Dedup(columns=["promt"]).filter_rows(["prompt", "completion"])
    made = Dedup(columns=["prompt"]).filter_rows(["prompt", "completion"])
    with pytest.raises(DataError, match="a source of it, has no column 'prompt'"):
        made({"completion": ["a"]})


def test_streams_and_wrong_values_are_refused():
    (problem,) = run_problems(Dedup(), data={"streaming": True})
    assert "resumes at any row" in problem.what
    assert not run_problems(Dedup(near=0.8))
    with pytest.raises(ConfigError, match=r"near: 1\.5 is out of range: it must be at most 1"):
        Dedup(near=1.5)


def test_a_missing_package_is_reported_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("sftkit_plugins.dedup.PACKAGE", "no-such-package>=2")
    (problem,) = run_problems(Dedup(near=0.8))
    assert "no-such-package" in f"{problem.what} {problem.fix}"
    assert not run_problems(Dedup())
