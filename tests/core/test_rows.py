"""Malformed rows are reported by file and line, or skipped and counted; sources are mixed and held out."""

from __future__ import annotations

import json
import logging

import pytest
from datasets import Dataset

from sftkit import Pipeline
from sftkit.errors import ConfigError, DataError
from sftkit.testing import tiny_model, tiny_tokenizer

GOOD = {"prompt": "question? ", "completion": "yes"}
NULL = {"prompt": "question? ", "completion": None}


def lines(*rows):
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n"


def prepare(tmp_path, data, *, plugins=(), train=None, **options):
    options = {"max_length": 64, "cache": False, **options}
    if isinstance(data, dict):
        options["mix"] = data
    else:
        options["train"] = str(data)
    train = {"output_dir": str(tmp_path / "run"), **(train or {})}
    return Pipeline(
        model=tiny_model(), tokenizer=tiny_tokenizer(), data=options, plugins=plugins, train=train
    ).prepare()


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def texts(rows):
    return [tiny_tokenizer().decode(ids) for ids in rows["input_ids"]]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", lines(GOOD, "", NULL), r"a\.jsonl:3: column 'completion' is null"),
        ("a.json", json.dumps([GOOD, NULL]), r"a\.json, row 2: column 'completion' is null"),
        ("a.csv", 'prompt,completion\n"two\nlines",yes\nq,\n', r"a\.csv:4: column 'completion' is null"),
    ],
)
def test_a_malformed_row_is_reported_by_file_and_line(tmp_path, name, text, message):
    with pytest.raises(DataError, match=message):
        prepare(tmp_path, write(tmp_path / name, text))


def test_a_bad_row_of_the_second_file_is_reported_by_that_file(tmp_path):
    write(tmp_path / "a.jsonl", lines(GOOD, GOOD))
    write(tmp_path / "b.jsonl", lines(GOOD, NULL))
    with pytest.raises(DataError, match=r"b\.jsonl:2: "):
        prepare(tmp_path, tmp_path)


def test_a_bad_row_keeps_its_line_when_rows_are_held_out(tmp_path):
    path = write(tmp_path / "a.jsonl", lines(*[GOOD] * 9, NULL))
    with pytest.raises(DataError, match=r"a\.jsonl:10: "):
        prepare(tmp_path, path, eval=0.5)


def test_bad_rows_are_skipped_counted_and_logged(tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="sftkit")
    path = write(tmp_path / "a.jsonl", lines(GOOD, NULL, GOOD, NULL))
    data = prepare(tmp_path, path, on_bad_row="skip").data
    assert len(data.train) == 2
    assert data.counts.by_split["train"]["bad rows skipped"] == 2
    assert "a.jsonl:2" in caplog.text
    assert "a.jsonl:4" in caplog.text


def test_lines_of_invalid_json_are_skipped_and_others_keep_their_numbers(tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="sftkit")
    path = write(tmp_path / "a.jsonl", lines(GOOD, "{broken", GOOD, "[1]", NULL))
    data = prepare(tmp_path, path, on_bad_row="skip").data
    assert len(data.train) == 2
    assert data.counts.by_split["train"]["unreadable lines skipped"] == 2
    assert "a.jsonl:5" in caplog.text


def test_lines_of_invalid_utf8_are_skipped(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines(GOOD).encode() + b'{"prompt": "\xff", "completion": "x"}\n' + lines(GOOD).encode())
    data = prepare(tmp_path, path, on_bad_row="skip").data
    assert len(data.train) == 2
    assert data.counts.by_split["train"]["unreadable lines skipped"] == 1


def test_the_policy_error_reports_the_long_row_by_file_and_line(tmp_path):
    path = write(tmp_path / "a.jsonl", lines(GOOD, {"prompt": "long " * 50, "completion": "x"}))
    with pytest.raises(DataError, match=r"a\.jsonl:2: the example has \d+ tokens, more than data.max_length=64"):
        prepare(tmp_path, path, truncation="error")


def test_an_unreadable_json_array_is_an_error_despite_on_bad_row_skip(tmp_path):
    path = write(tmp_path / "a.json", '[{"prompt": "q", "completion": "a"},\n{"prompt": }]')
    with pytest.raises(DataError, match=r"a\.json:2: not valid JSON"):
        prepare(tmp_path, path, on_bad_row="skip")


def half_of_an_emoji(row):
    return json.loads(row["text"])


def test_text_that_a_formatter_makes_invalid_is_reported_or_skipped(tmp_path):
    path = write(tmp_path / "a.jsonl", lines({"text": '"whole"'}, {"text": '"half \\ud83d"'}))
    plugins = [{"formats": {"formatting": half_of_an_emoji}}]
    with pytest.raises(DataError, match=r"a\.jsonl:2: the text has half of a surrogate pair"):
        prepare(tmp_path, path, plugins=plugins)
    data = prepare(tmp_path, path, plugins=plugins, on_bad_row="skip").data
    assert data.counts.by_split["train"]["bad rows skipped"] == 1
    assert len(data.train) == 1


def mixture(tmp_path, left=30, right=10):
    one = [{"prompt": f"left {n}? ", "completion": "l"} for n in range(left)]
    two = [{"text": f"right {n}"} for n in range(right)]
    return [str(write(tmp_path / f"{name}.jsonl", lines(*rows))) for name, rows in (("one", one), ("two", two))]


def test_sources_are_mixed_by_weight_until_the_first_is_used_up(tmp_path):
    one, two = mixture(tmp_path)
    found = texts(prepare(tmp_path, {one: 2, two: 1}).data.train)
    assert sum("left" in text for text in found) == 20
    assert sum("right" in text for text in found) == 10
    assert len(set(found)) == 30


def test_smaller_sources_repeat_until_all_are_used_up(tmp_path):
    one, two = mixture(tmp_path)
    found = texts(prepare(tmp_path, {one: 1, two: 1}, mix_until="all").data.train)
    assert sum("left" in text for text in found) == 30
    assert sum("right" in text for text in found) == 30
    assert len(set(found)) == 40


def test_rows_are_held_out_of_every_source_of_a_mix(tmp_path):
    one, two = mixture(tmp_path)
    data = prepare(tmp_path, {one: 2, two: 1}, eval=0.2).data
    train, held_out = set(texts(data.train)), set(texts(data.eval["eval"]))
    assert not train & held_out
    assert any("right" in text for text in held_out)
    assert any("left" in text for text in held_out)


def test_train_and_mix_cannot_be_combined(tmp_path):
    path = write(tmp_path / "a.jsonl", lines(GOOD))
    with pytest.raises(ConfigError, match=r"either data\.train or data\.mix"):
        prepare(tmp_path, path, mix={str(path): 1})


def test_named_evaluation_sets_are_packed_on_request_only(tmp_path):
    path = write(tmp_path / "a.jsonl", lines(*[GOOD] * 6))
    sets = {"first": str(path), "second": str(path)}
    data = prepare(tmp_path, path, eval=sets, plugins=["packing"]).data
    assert set(data.eval) == {"first", "second"}
    assert "position_ids" in data.train.column_names
    assert all("position_ids" not in rows.column_names for rows in data.eval.values())
    asked = prepare(tmp_path, path, eval=sets, plugins=["packing:eval=true"]).data
    assert all("position_ids" in rows.column_names for rows in asked.eval.values())


def test_losses_are_counted(tmp_path):
    rows = [GOOD, {"prompt": "q ", "completion": "long " * 30}, {"prompt": "long " * 40, "completion": "x"}]
    data = prepare(tmp_path, write(tmp_path / "a.jsonl", lines(*rows)), max_length=24).data
    counts = data.counts.by_split["train"]
    assert counts["rows read"] == 3
    assert counts["rows truncated"] == 2
    assert counts["completions cut"] == 2
    assert counts["rows without a trained token dropped"] == 1
    assert counts["tokens cut"] > 0
    assert data.described["train"]["rows"] == 2


def test_a_loaded_data_set_keeps_its_order(tmp_path):
    rows = Dataset.from_list([{"text": f"row {n}"} for n in range(2500)])
    ready = Pipeline(
        model=tiny_model(), tokenizer=tiny_tokenizer(), data=rows, train={"output_dir": str(tmp_path / "run")}
    ).prepare()
    found = texts(ready.data.train)
    assert [f"row {n}" in text for n, text in enumerate(found)] == [True] * 2500
