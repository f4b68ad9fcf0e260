"""``sftkit preview --dropped``: rows that filters and formatters dropped, with their reasons and places."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sftkit.testing import CHATML, tiny_conversations, tiny_model, tiny_tokenizer

EMPTY = {"messages": []}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))
    tiny_model().save_pretrained("model")
    tiny_tokenizer(chat_template=CHATML).save_pretrained("model")
    rows = tiny_conversations(12)
    lines = [*rows, *rows[:5], EMPTY, {"messages": 3}]
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
    Path("eval.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in tiny_conversations(3, 100)), encoding="utf-8"
    )


ARGUMENTS = ("preview", "--model", "model", "--data", "train.jsonl", "data.eval=eval.jsonl", "data.on_bad_row=skip")


def test_rows_are_shown_by_reason_with_file_and_line(here, in_process):
    code, printed = in_process(*ARGUMENTS, "-p", "dedup", "--dropped", "--rows", "2")
    assert code == 0
    assert "train: 5 rows dropped by dedup: duplicate\n── data.train, train.jsonl:13" in printed
    assert "train.jsonl:13 · repeats data.train, train.jsonl:1\n" in printed
    assert "and 3 more" in printed
    assert "train: 1 rows dropped: empty conversation\n── data.train, train.jsonl:18\n" in printed
    assert "train: 1 bad rows skipped\n── data.train, train.jsonl:19 · " in printed
    code, again = in_process(*ARGUMENTS, "-p", "dedup", "--dropped", "--rows", "2")
    assert "repeats data.train, train.jsonl:1\n" in again  # from the cache


def test_json_has_the_rows_of_each_reason(here, in_process):
    _, printed = in_process(*ARGUMENTS, "-p", "dedup", "--dropped", "--json")
    found = json.loads(printed[printed.index("{") : printed.rindex("}") + 1])
    assert {(each["what"], each["number"], len(each["rows"])) for each in found["dropped"]} == {
        ("rows dropped by dedup: duplicate", 5, 3),
        ("rows dropped: empty conversation", 1, 1),
        ("bad rows skipped", 1, 1),
    }


def test_a_split_without_dropped_rows_says_so(here, in_process):
    assert "no row of eval was dropped" in in_process(*ARGUMENTS, "--dropped", "--split", "eval")[1]


def test_options_of_tokens_are_refused(here, in_process):
    code, printed = in_process(*ARGUMENTS, "--dropped", "--ids")
    assert code == 2
    assert "dropped rows have no tokens -> leave out --html, --ids and --row" in printed
