"""The prepared rows that a run keeps for its report."""

from __future__ import annotations

import json

import pytest

from sftkit import Pipeline
from sftkit.run.sample_rows import TOKENS, sample_rows, write_sample_rows
from sftkit.testing import tiny_model, tiny_tokenizer


def kept(data, collator=None, run=None, **section):
    """The rows that are kept of a run on some data: rows, or a file."""
    section |= {"max_length": 4000, "cache": False, **({"train": data} if isinstance(data, str) else {})}
    config = {"data": section, "run": run or {}, "train": {"max_steps": 1}}
    given = data if isinstance(data, list) else None
    made = Pipeline(model=tiny_model(), tokenizer=tiny_tokenizer(), collator=collator, config=config, data=given)
    return sample_rows(made.prepare())


def rows(number, answer="yes"):
    return [{"prompt": f"Question {at}: ", "completion": answer} for at in range(number)]


def test_rows_are_taken_from_all_over_the_data():
    found = kept(rows(100))
    assert [row["title"].split(" ·")[0] for row in found] == ["row 1", "row 26", "row 51", "row 76"]
    for row, at in zip(found, (0, 25, 50, 75), strict=True):
        context, trained = (run["text"].strip() for run in row["runs"][-2:])
        assert context.endswith(f"Question {at}:")
        assert trained.startswith("yes")


def test_no_text_is_kept_on_request():
    assert kept(rows(8), run={"sample_rows": 0}) == []


def test_long_rows_are_kept_up_to_a_limit_and_say_so():
    (row, *_) = kept(rows(4, "no " * 2000))
    assert "more tokens not shown" in row["title"]
    assert len("".join(run["text"] for run in row["runs"])) < 8 * TOKENS


def test_the_first_rows_of_a_stream_are_kept(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(20)))
    found = kept(str(path), streaming=True, window=8)
    assert len(found) == 4
    assert all(row["runs"][-1]["kind"] == "trained" for row in found)


def test_a_collator_that_makes_other_batches_costs_only_the_rows(caplog):
    assert kept(rows(4), collator=lambda examples: {"pixels": 1}) == []
    assert "no rows of train are kept for a report" in caplog.text


@pytest.mark.parametrize("text", ["naïve\u2028</script>", "\U0001f600"])
def test_the_file_has_a_line_for_each_row(tmp_path, text):
    run = {"text": text, "kind": "trained", "weight": 1.0, "opens": False}
    row = {"split": "train", "title": "row 1", "runs": [run]}
    write_sample_rows(tmp_path, [row, row])
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == [row, row]
