"""Sources are read, or rejected with file and line; everything that happens to rows is counted."""

from __future__ import annotations

import json
import pickle
import re
from itertools import pairwise

import pytest
from datasets import Dataset, DatasetDict

from sftkit.data.columns import examples_of
from sftkit.data.counts import Counts
from sftkit.data.length import fit_length
from sftkit.data.sources import load_sources
from sftkit.errors import DataError, Problem
from sftkit.testing import tiny_config

ROWS = [{"text": f"row {number}"} for number in range(6)]


def texts(dataset):
    return list(dataset["text"])


def read(train, **data):
    return rows_of(load_sources(tiny_config(data={"train": str(train), **data})))


def rows_of(splits):
    """The rows of each split, as a run reads and picks them."""
    return {
        name: Dataset.from_list([row for source in sources for row in picked(source)])
        for name, sources in splits.items()
    }


def picked(source):
    rows = source.load().rows
    return rows if source.pick is None else rows.select(source.pick(len(rows)))


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def save(path):
    dataset = Dataset.from_list(ROWS)
    match path.suffix:
        case ".jsonl":
            write(path, lines(ROWS))
        case ".json":
            write(path, json.dumps(ROWS))
        case ".csv":
            dataset.to_csv(path, index=False)
        case ".parquet":
            dataset.to_parquet(path)
        case ".arrow":
            import pyarrow as pa

            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, dataset.data.table.schema) as writer:
                writer.write_table(dataset.data.table)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    assert texts(read(save(tmp_path / name))["train"]) == [row["text"] for row in ROWS]


def test_globs_directories_and_lists_of_files_are_read_together(tmp_path):
    write(tmp_path / "a.jsonl", lines(ROWS[:2]))
    write(tmp_path / "b.jsonl", lines(ROWS[2:]))
    for source in (tmp_path, tmp_path / "*.jsonl"):
        assert texts(read(source)["train"]) == [row["text"] for row in ROWS]
    both = load_sources(tiny_config(data={"train": [str(tmp_path / "b.jsonl"), str(tmp_path / "a.jsonl")]}))
    assert len(rows_of(both)["train"]) == 6


def test_loaded_objects_can_be_data():
    dataset = Dataset.from_list(ROWS)
    for value in (dataset, DatasetDict(train=dataset), ROWS):
        assert texts(rows_of(load_sources(tiny_config(), value))["train"]) == [row["text"] for row in ROWS]


def test_the_held_out_fraction_depends_on_the_seed_only(tmp_path):
    path = write(tmp_path / "a.jsonl", lines(ROWS))
    one, two = (read(path, eval=0.5), read(path, eval=0.5))
    assert len(one["train"]) == len(one["eval"]) == 3
    assert texts(one["eval"]) == texts(two["eval"])
    assert not set(texts(one["train"])) & set(texts(one["eval"]))


@pytest.mark.parametrize("loaded", [True, False])
def test_an_evaluation_set_cannot_be_named_train(tmp_path, loaded):
    named = {"train": Dataset.from_list(ROWS)} if loaded else None
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    files = str(tmp_path / "rows.jsonl")
    config = tiny_config(data={"train": files, "eval": {"train": files}})
    with pytest.raises(DataError, match=r"data\.eval\.train: an evaluation set is named train"):
        load_sources(config, evaluation=named)


def test_a_data_set_with_a_transform_is_rejected():
    dataset = Dataset.from_list(ROWS).with_transform(lambda rows: {"text": [text[::-1] for text in rows["text"]]})
    with pytest.raises(DataError, match="the data set has a transform"):
        load_sources(tiny_config(), dataset)


class Failing(list):
    """Examples that cannot be read."""

    def __getitem__(self, index):
        raise DataError(Problem("the file is broken", "images/a.png", "fix it"))


def test_the_error_of_a_data_worker_keeps_its_message():
    from torch.utils.data import DataLoader

    with pytest.raises(DataError) as caught:
        next(iter(DataLoader(Failing([1, 2]), num_workers=1)))
    assert str(caught.value) == "images/a.png: the file is broken -> fix it"


def test_an_error_keeps_its_problems_when_pickled():
    error = DataError([Problem("a", "b", "c"), Problem("d")])
    assert pickle.loads(pickle.dumps(error)).problems == error.problems


def test_several_evaluation_sets_keep_their_names(tmp_path):
    path = str(write(tmp_path / "a.jsonl", lines(ROWS)))
    assert set(read(path, eval={"easy": path, "hard": path})) == {"train", "easy", "hard"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"text": "x"}\n{"text": \n', r"not valid JSON.*"),
        ("a.jsonl", '{"text": "x"}\n{"text": \n', r"a\.jsonl:2"),
        ("a.json", '[{"text": "x"},\n{"text" "y"}]', r"a\.json:2"),
        ("a.jsonl", "", "the file is empty"),
        ("a.xlsx", "x", "unsupported file type"),
    ],
)
def test_an_unreadable_file_is_reported_with_its_line(tmp_path, name, text, message):
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / name, text))


def test_invalid_utf8_is_reported_with_its_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "x"}\n{"text": "\xff"}\n')
    with pytest.raises(DataError, match=re.escape(f"{path}:2: not valid UTF-8")):
        read(path)


@pytest.mark.parametrize("name", ["no.jsonl", "dir/no/", "*.jsonl"])
def test_a_missing_file_is_an_error(tmp_path, name):
    with pytest.raises(DataError, match=r"no such file|no data file"):
        read(tmp_path / name)


def examples(*rows):
    return Dataset.from_list([{"input_ids": ids, "labels": labels} for ids, labels in rows])


def fitted(policy, dataset, limit=3):
    counts = Counts()
    config = tiny_config(data={"max_length": limit, "truncation": policy})
    return fit_length(examples_of(dataset), "train", config.data, counts), dict(counts.by_split.get("train", {}))


LONG = examples(([1, 2, 3, 4], [-100, -100, 3, 4]), ([1, 2, 3, 4], [-100, -100, -100, 4]), ([1, 2], [-100, 2]))


def test_truncation_keeps_the_start_and_counts_what_is_lost():
    result, counts = fitted("keep_start", LONG)
    assert [result.ids_S[a:b].tolist() for a, b in pairwise(result.offsets_N1)] == [[1, 2, 3], [1, 2]]
    assert counts["rows truncated"] == 2
    assert counts["completions cut"] == 2
    assert counts["tokens cut"] == 2
    assert counts["rows without a trained token dropped"] == 1


def test_longer_examples_can_be_dropped_or_rejected():
    result, counts = fitted("drop", LONG)
    assert len(result) == 1
    assert counts == {"rows longer than 3 tokens dropped": 2}
    with pytest.raises(DataError, match="example 1: the example has 4 tokens"):
        fitted("error", LONG)
