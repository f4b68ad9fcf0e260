"""Data sets saved by `datasets`, and Parquet and Arrow files, are read by split and brought to the same columns."""

from __future__ import annotations

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict
from pyarrow import parquet

from sftkit.data.sources import load_sources
from sftkit.errors import DataError
from sftkit.testing import tiny_config


def rows(name):
    return Dataset.from_dict({"text": [f"{name} 0", f"{name} 1"]})


def sources(train, **data):
    return load_sources(tiny_config(data={"train": str(train), **data}))


def texts(train, name="train", **data):
    return list(sources(train, **data)[name][0].load().rows["text"])


def test_a_saved_data_set_is_read(tmp_path):
    rows("a").save_to_disk(tmp_path / "saved")
    assert texts(tmp_path / "saved") == ["a 0", "a 1"]


def test_a_saved_dict_is_read_by_split(tmp_path):
    DatasetDict(train=rows("train"), test=rows("test")).save_to_disk(tmp_path / "saved")
    assert texts(tmp_path / "saved") == ["train 0", "train 1"]
    assert texts(tmp_path / "saved", split="test") == ["test 0", "test 1"]
    assert texts(tmp_path / "saved", "eval", eval=str(tmp_path / "saved")) == ["test 0", "test 1"]
    with pytest.raises(DataError, match=r"no split 'dev', but train, test -> set data\.split"):
        texts(tmp_path / "saved", split="dev")


def test_saved_data_is_identified_by_its_files_and_split(tmp_path):
    DatasetDict(train=rows("a"), test=rows("b")).save_to_disk(tmp_path / "saved")
    before, other = (sources(tmp_path / "saved", split=split)["train"][0].identity for split in ("train", "test"))
    DatasetDict(train=rows("c"), test=rows("b")).save_to_disk(tmp_path / "saved")
    assert len({str(each) for each in (before, other, sources(tmp_path / "saved")["train"][0].identity)}) == 3


def test_saved_data_cannot_be_one_of_several_names(tmp_path):
    rows("a").save_to_disk(tmp_path / "saved")
    rows("b").to_json(tmp_path / "b.jsonl")
    with pytest.raises(DataError, match=r"saved with save_to_disk, and cannot be in a list -> use data\.mix"):
        load_sources(tiny_config(data={"train": [str(tmp_path / "saved"), str(tmp_path / "b.jsonl")]}))


def test_a_damaged_saved_data_set_is_an_error(tmp_path):
    rows("a").save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match="cannot read the saved data set"):
        texts(tmp_path / "saved")


def test_evaluation_on_a_dict_uses_its_held_out_split():
    both = DatasetDict(train=rows("train"), validation=rows("validation"))
    made = load_sources(tiny_config(), both, both)
    assert list(made["eval"][0].load().rows["text"]) == ["validation 0", "validation 1"]


TABLES = [pa.table({"text": ["a"]}), pa.table({"text": pa.array(["b"], pa.large_string()), "extra": [1]})]


def write(path, table):
    if path.suffix == ".parquet":
        parquet.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_columns_that_a_file_lacks_are_null(tmp_path, suffix, order):
    for name, at in zip("ab", order, strict=True):
        write(tmp_path / f"{name}{suffix}", TABLES[at])
    read = sources(tmp_path)["train"][0].load()
    found = {row["text"]: row["extra"] for row in read.rows}
    assert found == {"a": None, "b": 1}
    assert read.place(1) == f"{tmp_path}/b{suffix}, row 1"


def test_a_column_of_another_type_is_named_with_its_file(tmp_path):
    write(tmp_path / "a.parquet", TABLES[0])
    write(tmp_path / "b.parquet", pa.table({"text": [[1]]}))
    with pytest.raises(DataError, match=r"b\.parquet: column 'text' is of type list<.*>, but of type string"):
        sources(tmp_path)["train"][0].load()


def test_a_file_that_is_no_table_is_an_error(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"text")
    with pytest.raises(DataError, match=r"cannot read .*a\.parquet"):
        sources(tmp_path)["train"][0].load()
