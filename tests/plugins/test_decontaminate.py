"""Rows are dropped as by a comparison of all sets of n-grams."""

from __future__ import annotations

import json
import logging
import random
import re

import pytest

from sftkit import Pipeline
from sftkit.errors import DataError
from sftkit.testing import run_problems, tiny_config, tiny_model, tiny_tokenizer
from sftkit_plugins.decontaminate import Decontaminate

QUESTION = "A farmer has twelve cows and sells five of them to a neighbour who pays ninety euros for each cow"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))


def filtering(plugin, sets, columns=("text",)):
    made = plugin.filter_rows(list(columns), tiny_config())
    for name, texts in sets.items():
        made.see_held_out(name, {"text": texts})
    return made


def random_texts(number, seed):
    chosen = random.Random(seed)
    words = ["one", "Two", "three,", "four.", "fi-ve", "six", "SEVEN", "8"]
    return [" ".join(chosen.choice(words) for _ in range(chosen.randint(1, 30))) for _ in range(number)]


def ngrams(text, n):
    words = re.findall(r"[a-z0-9]+", text.lower())
    return {tuple(words[at : at + n]) for at in range(len(words) - n + 1)}


@pytest.mark.parametrize("n", [4, 6])
def test_rows_are_those_of_a_comparison_of_all_n_grams(n):
    train, one, two = (random_texts(100, seed) for seed in range(3))
    sets = {name: set().union(*(ngrams(text, n) for text in texts)) for name, texts in (("one", one), ("two", two))}
    decided = filtering(Decontaminate(ngram=n, common=1000), {"one": one, "two": two})({"text": train})
    dropped = 0
    for text, each in zip(train, decided, strict=True):
        own = ngrams(text, n)
        expected = own & (sets["one"] | sets["two"])
        assert (each is not None) == bool(expected)
        if each is not None:
            dropped += 1
            shared = tuple(each.detail.strip("“”").split())
            assert shared in expected
            assert each.reason == f"shares {n} words with {'one' if shared in sets['one'] else 'two'}"
    assert 10 < dropped < 100


def test_words_are_not_compared_across_texts():
    made = filtering(Decontaminate(ngram=4), {"eval": ["a b c d"]}, ("x", "y"))
    assert made({"x": ["a b", "a b c d"], "y": ["c d", ""]})[0] is None
    assert made({"x": ["a b", "a b c d"], "y": ["c d", ""]})[1] is not None


def test_messages_and_columns_are_looked_into_at_any_depth():
    plugin = Decontaminate(ngram=5, columns=["messages"])
    made = plugin.filter_rows(["messages", "note"], tiny_config())
    made.see_held_out("eval", {"question": [QUESTION]})
    rows = {"messages": [[{"role": "user", "content": QUESTION.upper()}], [{"role": "user", "content": "Hi"}]]}
    first, second = made({**rows, "note": ["", QUESTION]})
    assert first is not None
    assert second is None


def test_words_of_many_evaluation_rows_are_ignored():
    preamble = "You are a helpful assistant that answers in one short sentence"
    questions = [f"{preamble}: what is number {at} of this list" for at in range(5)]
    rows = {"text": [f"{preamble}: bye", f"say what is number {3} of this list"]}
    decided = filtering(Decontaminate(ngram=6, common=4), {"eval": questions})(rows)
    assert decided[0] is None
    assert decided[1] is not None
    assert filtering(Decontaminate(ngram=6, common=5), {"eval": questions})(rows)[0] is not None


def test_evaluation_rows_that_are_too_short_are_reported(caplog):
    made = filtering(Decontaminate(), {"eval": ["too short", QUESTION]})
    with caplog.at_level(logging.WARNING, logger="sftkit"):
        made({"text": ["too short"]})
    assert "1 of 2 rows of eval have no 13 words in succession" in caplog.text


def prepared(config, **options):
    run = Pipeline(
        model=tiny_model(),
        tokenizer=tiny_tokenizer(),
        config={"data": {"max_length": 256, **config}},
        train={"use_cpu": True, "max_steps": 1},
        **options,
    )
    return run.prepare().data


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def test_a_run_drops_rows_of_its_own_sets_and_of_files(tmp_path):
    other = "The quick brown fox jumps over the lazy dog while the old cat sleeps in the warm sun"
    train = write(tmp_path / "train.jsonl", ["harmless", f"Q: {QUESTION}", f"Read this: {other}"])
    held_out = write(tmp_path / "eval.jsonl", [QUESTION])
    plugin = {"decontaminate": {"against": [write(tmp_path / "bench.jsonl", [other])]}}
    data = prepared({"train": train, "eval": {"math": held_out}}, plugins=[plugin])
    counts = data.counts.by_split["train"]
    assert counts["rows dropped by decontaminate: shares 13 words with math"] == 1
    assert counts["rows dropped by decontaminate: shares 13 words with bench.jsonl"] == 1
    assert (len(data.train), len(data.eval["math"])) == (1, 1)
    assert "a farmer has twelve cows" in next(row.detail for row in data.dropped["train"] if row.number == 1)
    write(tmp_path / "bench.jsonl", ["something else"])
    assert len(prepared({"train": train, "eval": {"math": held_out}}, plugins=[plugin]).train) == 2


def test_a_held_out_fraction_shares_no_words_with_the_rest(tmp_path):
    texts = [f"{QUESTION} and number {at % 10} is the one that counts in the end" for at in range(40)]
    texts += [f"{at} other rows" for at in range(40)]
    data = prepared({"train": write(tmp_path / "a.jsonl", texts), "eval": 0.1}, plugins=["decontaminate:ngram=8"])
    held_out, train = (
        [tiny_tokenizer().decode(row["input_ids"]) for row in rows] for rows in (data.eval["eval"], data.train)
    )
    assert not set().union(*(ngrams(text, 8) for text in held_out)) & set().union(*(ngrams(text, 8) for text in train))
    assert data.counts.by_split["train"]["rows dropped by decontaminate: shares 8 words with eval"]


def test_a_stream_is_compared_too(tmp_path):
    train = write(tmp_path / "train.jsonl", ["harmless text", f"Q: {QUESTION}"])
    held_out = write(tmp_path / "eval.jsonl", [QUESTION])
    data = prepared({"train": train, "eval": held_out, "streaming": True, "window": 4}, plugins=["decontaminate"])
    assert {tiny_tokenizer().decode(row["input_ids"], skip_special_tokens=True) for row in data.train.first.rows} == {
        "harmless text"
    }


def test_nothing_to_compare_with_and_wrong_columns_are_refused(tmp_path):
    (problem,) = run_problems(Decontaminate())
    assert "no evaluation set" in problem.what
    assert run_problems(Decontaminate(own_sets=False), data={"eval": "a.jsonl"})
    assert not run_problems(Decontaminate(), data={"eval": 0.1})
    with pytest.raises(DataError, match="has no column 'promt' -> did you mean 'prompt'"):
        Decontaminate(columns=["promt"]).filter_rows(["prompt"], tiny_config())
    with pytest.raises(DataError, match=r"plugin decontaminate, option against"):
        Decontaminate(against=[str(tmp_path / "missing.jsonl")]).filter_rows(["text"], tiny_config())
