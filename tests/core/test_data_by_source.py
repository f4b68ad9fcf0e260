"""Tokens of the data, and what was done to its rows, by source: in the data, the manifest and the commands."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from sftkit.testing import tiny_model, tiny_tokenizer

SUMS = ("tokens", "trained tokens", "rows truncated", "completions cut", "tokens cut", "bad rows skipped")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Two sources; of the first one, rows are too long, and one is malformed in each."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))
    tiny_model().save_pretrained("model")
    tiny_tokenizer().save_pretrained("model")
    for name, times, empty in (("long", 40, 1), ("short", 1, 3)):
        rows = [{"prompt": "Q: ", "completion": f"{number} " * times} for number in range(1, 6)]
        rows += [{"prompt": "Q: ", "completion": ""}] * empty + [{"prompt": 3, "completion": "no text"}]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


ARGUMENTS = (
    "--model",
    "model",
    "data.train=[long.jsonl,short.jsonl]",
    "data.max_length=48",
    "data.special_tokens=none",
)
ARGUMENTS += ("data.on_bad_row=skip", "-p", "no:checks")


def as_json(printed):
    return json.loads(printed[printed.index("{") : printed.rindex("}") + 1])


@pytest.mark.parametrize("plugins", [(), ("-p", "packing")], ids=["rows", "packed"])
def test_what_was_done_to_the_rows_of_each_source_sums_to_the_split(here, in_process, plugins):
    _, printed = in_process("check", *ARGUMENTS, *plugins, "--json")
    counts = as_json(printed)["data"]["train"]
    summed = sum((Counter(of) for of in counts["sources"].values()), Counter())
    assert {name: counts[name] for name in SUMS} == {name: summed[name] for name in SUMS}
    assert counts["sources"]["long"]["rows truncated"] == 5
    assert "rows truncated" not in counts["sources"]["short"]
    assert {name: of["rows without a trained token dropped"] for name, of in counts["sources"].items()} == {
        "long": 1,
        "short": 3,
    }


def test_the_tables_have_a_row_for_each_source(here, in_process, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    _, printed = in_process("check", *ARGUMENTS)
    of_long, _, of_short = printed.partition("train: long")[2].partition("train: short")
    assert "5 rows truncated" in of_long
    assert "1 bad rows skipped" in of_long
    assert of_short


def test_dropped_rows_are_counted_by_source(here, in_process):
    options = ("preview", *ARGUMENTS, "data.truncation=drop", "--dropped")
    _, printed = in_process(*options, "--json")
    found = {each["what"]: each["sources"] for each in as_json(printed)["dropped"]}
    assert found["rows longer than 48 tokens dropped"] == {"long": 5}
    assert found["rows without a trained token dropped"] == {"long": 1, "short": 3}
    assert found["bad rows skipped"] == {"long": 1, "short": 1}
    assert "train: 4 rows without a trained token dropped (long 1, short 3)\n" in in_process(*options)[1]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_prepared_data_has_the_same_counts_and_so_has_a_run_with_it(here, in_process, workers):
    _, printed = in_process("prepare", *ARGUMENTS, "--to", "prepared", "--workers", workers)
    expected = as_json(in_process("check", *ARGUMENTS, "--json")[1])["data"]["train"]["sources"]
    manifest = json.loads(Path("prepared", "prepared.json").read_text(encoding="utf-8"))
    assert manifest["splits"]["train"]["summary"]["sources"] == expected
    options = ("data.prepared=prepared", "train.max_steps=1", "train.use_cpu=true", "-o", "run")
    code, printed = in_process("run", *ARGUMENTS, *options)
    assert code == 0, printed
    assert json.loads(Path("run", "manifest.json").read_text())["data"]["train"]["sources"] == expected
    assert "Training by data source" in printed
    assert in_process("run", *ARGUMENTS, *options, "--resume")[1].count("Training by data source") == 1


def test_one_source_has_no_rows_of_its_own(here, in_process):
    arguments = ("data.train=short.jsonl", *(each for each in ARGUMENTS if "long.jsonl" not in each))
    assert "sources" not in as_json(in_process("check", *arguments, "--json")[1])["data"]["train"]
