"""Values come back from files and from Python rows as they were written, whatever else their column holds."""

from __future__ import annotations

import gc
import json
import math

import pytest
from datasets import Dataset, Features, Json, List, Value

from sftkit.data.batches import batches
from sftkit.data.exact import BLOCK
from sftkit.data.reading import read_files, read_list
from sftkit.errors import DataError
from sftkit.testing import tiny_config

DATA = tiny_config().data


def from_file(rows, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_files([str(path)], "train", DATA, "data.train")


def from_list(rows, tmp_path):
    return read_list(rows, DATA, "data.train")


def values(read):
    """The rows as formatters get them."""
    return [
        dict(zip(columns, row, strict=True))
        for _, columns in batches(read.rows, None)
        for row in zip(*columns.values(), strict=True)
    ]


SOURCES = pytest.mark.parametrize("read", [from_file, from_list])
TEXT, NUMBER = Value("string"), Value("int64")
MESSAGE = {"role": "user", "content": "Hi"}


@SOURCES
@pytest.mark.parametrize(
    ("column", "feature"),
    [
        (["a", "2024-05-01", None], TEXT),
        ([1, 2, -(1 << 63)], NUMBER),
        ([3, 3.0, 0.1], Value("float64")),
        ([True, False, None], Value("bool")),
        ([1 << 70, 1, 2], NUMBER),
        (["text", 3, True], TEXT),
        ([[MESSAGE], [MESSAGE, MESSAGE], []], List({"role": TEXT, "content": TEXT})),
        ([[MESSAGE], None, [{**MESSAGE, "name": "x"}]], List({"role": TEXT, "content": TEXT, "name": TEXT})),
        ([{"a": 3, "b": 1}, {"b": 3.0}, {"a": None}], {"a": NUMBER, "b": Value("float64")}),
        ([[1, 2], [], None], List(NUMBER)),
        (["text", [1], {"a": 1}], Json()),
        ([None, None, None], Value("null")),
        ([[{"x": "2024-05-01"}], [{"x": 1.5}], [{"x": [None]}]], List({"x": Json()})),
    ],
)
def test_values_keep_their_types_and_columns_are_described(read, tmp_path, column, feature):
    made = read([{"column": value, "beside": "x"} for value in column], tmp_path)
    found = [row["column"] for row in values(made)]
    assert [json.dumps(value) for value in found] == [json.dumps(value) for value in column]
    assert made.columns == Features({"column": feature, "beside": TEXT})


@SOURCES
def test_the_order_of_keys_and_missing_keys_are_kept(read, tmp_path):
    column = [{"z": 1, "a": 2}, {"a": 1, "z": 2}, {"z": None}, {}]
    found = values(read([{"column": value} for value in column], tmp_path))
    assert [list(row["column"].items()) for row in found] == [list(value.items()) for value in column]


@SOURCES
def test_a_column_whose_type_changes_late_keeps_all_its_values(read, tmp_path):
    column = ["1"] * BLOCK + [2] * BLOCK + [[3]] * 3
    rows = [{"column": value} for value in column] + [{"other": 1}]
    made = read(rows, tmp_path)
    assert [row["column"] for row in values(made)] == [*column, None]
    assert [row["other"] for row in values(made)] == [None] * len(column) + [1]
    assert made.mixed == {"column": {"text": 0, "a number": BLOCK, "a list": 2 * BLOCK}}


@SOURCES
def test_floats_that_are_not_finite_are_kept(read, tmp_path):
    found = [row["x"] for row in values(read([{"x": math.nan}, {"x": math.inf}, {"x": 1}], tmp_path))]
    assert math.isnan(found[0])
    assert found[1:] == [math.inf, 1]


def test_python_rows_may_hold_values_that_json_does_not_have():
    image = {"path": None, "bytes": b"\x89PNG"}
    made = read_list([{"image": image, "id": 1}, {"image": image, "id": 2.5}], DATA, "data.train")
    assert values(made) == [{"id": 1, "image": image}, {"id": 2.5, "image": image}]
    assert type(values(made)[0]["id"]) is int


def test_values_of_other_types_that_differ_are_an_error():
    with pytest.raises(DataError, match=r"data\.train: cannot read the columns value: "):
        read_list([{"value": b"x"}, {"value": [b"y"]}], DATA, "data.train")


def test_equal_python_rows_have_the_same_fingerprint():
    one, two, other = (read_list([{"a": [value]}], DATA, "data.train").rows for value in (1, 1, 2))
    assert one._fingerprint == two._fingerprint != other._fingerprint


def test_json_columns_of_a_loaded_data_set_are_parsed_exactly():
    rows = Dataset.from_dict(
        {"a": ['{"x": 0.1234567890123456789, "y": 12345678901234567890}'], "b": [[{"c": "3"}]]},
        features=Features({"a": Json(), "b": List(Json())}),
    )
    ((_, columns),) = batches(rows, None)
    assert columns == {"a": [{"x": 0.1234567890123456789, "y": 12345678901234567890}], "b": [[{"c": "3"}]]}


def test_a_column_without_a_format_names_where_its_types_differ(tmp_path):
    from sftkit import Pipeline
    from sftkit.testing import tiny_model, tiny_tokenizer

    for name, text in (("a.jsonl", "x"), ("b.jsonl", {"answer": "y"})):
        row = {"text": text}
        (tmp_path / name).write_text(json.dumps(row) + "\n", encoding="utf-8")
    config = {"data": {"train": str(tmp_path), "cache": False}, "train": {"output_dir": "unused"}}
    with pytest.raises(DataError, match="no format fits") as caught:
        Pipeline(model=tiny_model(), tokenizer=tiny_tokenizer(), config=config).prepare()
    places = f"an object ({tmp_path}/b.jsonl:1); text ({tmp_path}/a.jsonl:1)"
    assert caught.value.problems[-1].what == f"column 'text' has several types: {places}"


def test_rows_on_disk_are_removed_after_use_and_not_before(tmp_path):
    from sftkit.data import cache

    read = from_file([{"a": 1}], tmp_path)
    directory = read.scratch.path
    cache.clear()
    assert [row["a"] for row in values(read)] == [1]
    del read
    gc.collect()
    assert not list(directory.parent.glob(f"{directory.name}*"))
