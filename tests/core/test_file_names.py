"""Names of files and folders stand for splits, as in `datasets`; what is no data is never read."""

from __future__ import annotations

import json

import pytest
from datasets.data_files import DataFilesDict, get_data_patterns

from sftkit.data.files import find_files, kind_of_all
from sftkit.data.splits import by_split
from sftkit.errors import DataError


def make(directory, *names):
    for name in names:
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"text": name}) + "\n", encoding="utf-8")
    return directory


def found(directory, split="train", pattern=""):
    names = find_files(str(directory / pattern), split, "data.train").names
    return [name.removeprefix(f"{directory}/") for name in names]


LAYOUTS = [
    ("train.jsonl", "test.jsonl"),
    ("train_0.jsonl", "train_1.jsonl", "dev.jsonl", "other.jsonl"),
    ("my-training.jsonl", "my.valid.jsonl", "latest.jsonl", "contest.jsonl"),
    ("a/train/x.jsonl", "a/test/train.jsonl", "b.jsonl"),
    ("data/train-00000-of-00002.jsonl", "data/train-00001-of-00002.jsonl", "data/random-00000-of-00001.jsonl"),
    ("data/train_sft-00000-of-00001.jsonl", "data/test_sft-00000-of-00001.jsonl", "train.jsonl"),
    ("train-eval.jsonl", "x.jsonl"),
    ("en.val2.jsonl", "evaluation 3.jsonl", "testing.jsonl"),
]


@pytest.mark.parametrize("names", LAYOUTS)
def test_splits_are_those_of_datasets(tmp_path, names):
    make(tmp_path, *names)
    theirs = DataFilesDict.from_patterns(get_data_patterns(str(tmp_path)), str(tmp_path))
    expected = {
        str(split): sorted(file.removeprefix(f"{tmp_path}/") for file in files) for split, files in theirs.items()
    }
    assert {split: sorted(files) for split, files in by_split(sorted(names)).items()} == expected


def test_files_without_a_split_are_all_read(tmp_path):
    assert found(make(tmp_path, "b.jsonl", "a.jsonl")) == ["a.jsonl", "b.jsonl"]


def test_files_of_other_splits_and_of_none_are_counted(tmp_path):
    make(tmp_path, "train.jsonl", "test.jsonl", "more.jsonl")
    notes = find_files(str(tmp_path), "train", "data.train").notes
    assert notes == {"files not read: split test": 1, "files not read: no split in their names": 1}


def test_a_word_for_a_split_selects_it(tmp_path):
    assert found(make(tmp_path, "train.jsonl", "valid.jsonl"), "dev") == ["valid.jsonl"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train.jsonl", "test.jsonl", "dev.jsonl"), "dev.jsonl"),
        (("train.jsonl", "test.jsonl"), "test.jsonl"),
        (("train.jsonl",), "train.jsonl"),
    ],
)
def test_evaluation_data_is_the_validation_split_or_else_the_test_split(tmp_path, names, expected):
    assert found(make(tmp_path, *names), None) == [expected]


@pytest.mark.parametrize("pattern", ["", "*.jsonl"])
def test_a_missing_split_is_an_error_that_lists_the_splits(tmp_path, pattern):
    make(tmp_path, "test.jsonl", "dev.jsonl")
    with pytest.raises(DataError, match=r"no split 'train', but .*validation.* -> set data\.split to one of: .*test"):
        found(tmp_path, "train", pattern)


def test_a_pattern_that_matches_one_split_reads_it(tmp_path):
    make(tmp_path, "train.jsonl", "test-a.jsonl", "test-b.jsonl")
    assert found(tmp_path, "train", "test-*.jsonl") == ["test-a.jsonl", "test-b.jsonl"]


HIDDEN = [".ipynb_checkpoints/a.jsonl", ".git/a.jsonl", "._a.jsonl", "__pycache__/a.jsonl", "x/.cache/a.jsonl"]


@pytest.mark.parametrize("pattern", ["", "**/*.jsonl"])
def test_hidden_files_are_not_read(tmp_path, pattern):
    make(tmp_path, "x/b.jsonl", *HIDDEN)
    assert found(tmp_path, "train", pattern) == ["x/b.jsonl"]


def test_a_hidden_folder_is_read_if_it_is_named(tmp_path):
    make(tmp_path, ".hidden/a.jsonl")
    assert found(tmp_path / ".hidden") == ["a.jsonl"]
    assert found(tmp_path, "train", ".hidden/*.jsonl") == [".hidden/a.jsonl"]


def test_descriptions_beside_the_data_are_not_read(tmp_path):
    make(tmp_path, "a.json", "dataset_infos.json", "config.json", "README.md", "x/dataset_info.json")
    assert found(tmp_path) == ["a.json"]


def test_files_of_several_types_are_an_error_that_names_them(tmp_path):
    make(tmp_path, "a.json", "b.csv")
    with pytest.raises(DataError, match=r"different types: \.json \(.*a\.json\), \.csv \(.*b\.csv\)"):
        kind_of_all(find_files(str(tmp_path), "train", "data.train").names, "data.train")


def test_only_text_files_can_be_compressed(tmp_path):
    make(tmp_path, "a.parquet.gz")
    with pytest.raises(DataError, match="unsupported file type"):
        find_files(str(tmp_path / "a.parquet.gz"), "train", "data.train")
