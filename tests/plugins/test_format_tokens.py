"""Rows that are tokenized already are used as they are, cut, packed and counted like others, and checked."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset

from sftkit import Pipeline
from sftkit.errors import ConfigError, DataError
from sftkit.testing import tiny_model, tiny_tokenizer

IDS, LABELS = [5, 6, 7, 8], [-100, -100, 7, 8]
ROW = {"input_ids": IDS, "labels": LABELS}


def prepare(rows, plugins=(), **options):
    config = {"data": {"max_length": 8, "cache": False, **options}, "train": {"output_dir": "unused"}}
    passed = rows if isinstance(rows, list | Dataset) else None
    if passed is None:
        config["data"]["train"] = str(rows)
    return (
        Pipeline(model=tiny_model(), tokenizer=tiny_tokenizer(), data=passed, config=config, plugins=plugins)
        .prepare()
        .data
    )


def examples(data):
    train = data.train.with_format(None)
    return list(zip(train["input_ids"], train["labels"], strict=True))


def notes(data):
    return {
        name.removeprefix("rows noted: "): number
        for name, number in data.counts.by_split["train"].items()
        if name.startswith("rows noted: ")
    }


@pytest.mark.parametrize(
    "trained",
    [
        {"labels": LABELS},
        *({name: [0, 0, 1, 1]} for name in ("completion_mask", "assistant_masks", "assistant_mask", "loss_mask")),
        {"loss_mask": [False, False, True, True]},
        {"completion_mask": [0, 1, 1, 1], "assistant_masks": [1, 0, 1, 1]},
        {"labels": LABELS, "attention_mask": [1, 1, 1, 1], "position_ids": [0, 1, 2, 3]},
    ],
)
def test_labels_or_masks_decide_what_is_trained(trained):
    data = prepare([{"input_ids": IDS, **trained}])
    assert examples(data) == [(IDS, LABELS)]
    assert not notes(data)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_files_of_tokens_are_read(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    rows = Dataset.from_list([ROW, ROW])
    rows.to_parquet(path) if kind == "parquet" else rows.to_json(path)
    assert examples(prepare(path)) == [(IDS, LABELS)] * 2


def test_ids_alone_are_all_trained_except_the_first_and_this_is_reported():
    data = prepare([{"input_ids": IDS}])
    assert examples(data) == [(IDS, [-100, *IDS[1:]])]
    assert notes(data) == {"tokenized rows without labels or a mask: all tokens are trained": 1}


def test_other_columns_are_reported_as_ignored():
    data = prepare([{**ROW, "token_type_ids": [0] * 4, "text": "x", "loss_mask": [1, 1, 1, 1]}])
    assert examples(data) == [(IDS, LABELS)]
    assert notes(data) == {f"column {name} ignored": 1 for name in ("token_type_ids", "text", "loss_mask")}


@pytest.mark.parametrize("mask", [[0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
def test_padding_is_cut_and_counted(mask):
    start = mask.index(1)
    ids = [2] * start + IDS + [2] * (2 - start)
    labels = [-100] * start + LABELS + [-100] * (2 - start)
    data = prepare([{"input_ids": ids, "labels": labels, "attention_mask": mask}])
    assert examples(data) == [(IDS, LABELS)]
    assert notes(data) == {"padding of tokenized rows cut (attention_mask is 0)": 1}


def test_rows_of_several_documents_are_split_where_positions_restart():
    row = {"input_ids": IDS + IDS, "labels": LABELS + LABELS, "position_ids": [0, 1, 2, 3] * 2}
    data = prepare([row])
    assert examples(data) == [(IDS, LABELS)] * 2
    assert notes(data) == {"tokenized rows split into documents, where position_ids restart": 1}


def test_rows_are_cut_packed_and_counted_like_others():
    long = {"input_ids": IDS * 3, "labels": [-100] * 4 + IDS * 2}
    data = prepare([long, ROW, ROW], ["packing"])
    assert sorted(len(ids) for ids, _ in examples(data)) == [8, 8]
    assert sum(label != -100 for _, labels in examples(data) for label in labels) == 8
    assert data.counts.by_split["train"]["rows truncated"] == 1
    assert data.stats["train"].longest == 12


def test_a_column_of_weights_applies_to_tokens():
    train = prepare([{**ROW, "weight": 0.5}, {**ROW, "weight": None}, {**ROW, "weight": 0}]).train.with_format(None)
    assert train["loss_weights"][:] == [[1, 1, 0.5, 0.5], [1, 1, 1, 1]]


def test_rows_without_tokens_or_without_trained_tokens_are_dropped_and_counted():
    empty = {"input_ids": [], "labels": []}
    counts = prepare([ROW, empty, {**ROW, "labels": [-100] * 4}]).counts.by_split["train"]
    assert counts["rows dropped: no tokens"] == 1
    assert counts["rows without a trained token dropped"] == 1


WRONG = [
    ({"input_ids": [5, 6, 999, 8]}, "token 3 is 999, but the tokenizer has"),
    ({"input_ids": [5, -1, 7, 8]}, "token 2 is -1"),
    ({"input_ids": None}, "column 'input_ids' is not a list of numbers"),
    ({"input_ids": "5 6"}, "column 'input_ids' is not a list of numbers"),
    ({"labels": [-100, 7, 8, -100]}, "label 2 is 7, but the token is 6 -> .*labels are not shifted"),
    ({"labels": [-100, 7]}, "column 'labels' has 2 numbers, but 'input_ids' has 4"),
    ({"labels": None}, "column 'labels' is null"),
    ({"attention_mask": [1, 0, 1, 1]}, "column 'attention_mask' is 0 or another number between tokens"),
    ({"attention_mask": [1, 1, 1]}, "column 'attention_mask' has 3 numbers"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_wrong_tokens_are_reported_with_their_line_or_skipped(tmp_path, change, message):
    path = tmp_path / "a.jsonl"
    good = {**ROW, "attention_mask": [1] * 4}
    path.write_text("".join(json.dumps(row) + "\n" for row in (good, {**good, **change})))
    with pytest.raises(DataError, match=rf"a\.jsonl:2: .*{message}"):
        prepare(path)
    assert prepare(path, on_bad_row="skip").counts.by_split["train"]["bad rows skipped"] == 1


@pytest.mark.parametrize("mask", [[0, 0, 2, 1], None, [1, 1]])
def test_a_mask_must_be_a_list_of_0_and_1(mask):
    with pytest.raises(DataError, match=r"row 1: column 'loss_mask'"):
        prepare([{"input_ids": IDS, "loss_mask": mask}, {"input_ids": IDS, "loss_mask": [1] * 4}])


@pytest.mark.parametrize("plugin", ["formats:loss=all", {"completion_only": {"response_template": "x"}}])
def test_a_plugin_that_decides_what_to_train_is_refused(plugin):
    with pytest.raises(ConfigError, match="the data is tokenized already"):
        prepare([ROW], [plugin])


def test_a_plugin_that_works_on_text_gets_an_error():
    from sftkit.api import TokenDocument

    with pytest.raises(DataError, match="tokenized already, but a plugin works on text"):
        list(TokenDocument(IDS, LABELS))
