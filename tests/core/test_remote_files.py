"""Files of remote systems are read through fsspec; a missing package is named."""

from __future__ import annotations

import builtins
import json
from itertools import islice

import fsspec
import pytest
from datasets import Dataset

from sftkit import Pipeline
from sftkit.data.files import find_files
from sftkit.data.sources import load_sources
from sftkit.errors import DataError
from sftkit.testing import tiny_config, tiny_model, tiny_tokenizer


def lines(*texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.fixture
def remote():
    """A directory in memory: ``write(path, content)`` adds a file."""
    system = fsspec.filesystem("memory")

    def write(path, content):
        system.pipe(f"/bucket/{path}", content)
        return f"memory://bucket/{path}"

    system.makedirs("/bucket", exist_ok=True)
    yield write
    system.rm("/bucket", recursive=True)


def texts(train, **data):
    return list(load_sources(tiny_config(data={"train": train, **data}))["train"][0].load().rows["text"])


def test_a_remote_file_is_read(remote):
    assert texts(remote("a.jsonl", lines("a", "b"))) == ["a", "b"]


def test_a_remote_file_may_be_compressed(remote):
    import gzip

    assert texts(remote("a.jsonl.gz", gzip.compress(lines("a")))) == ["a"]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_remote_table_is_read(remote, tmp_path, suffix):
    rows = Dataset.from_dict({"text": ["a", "b"]})
    if suffix == "parquet":
        rows.to_parquet(tmp_path / "a.parquet")
    else:
        rows.save_to_disk(tmp_path / "saved")
        next((tmp_path / "saved").glob("*.arrow")).rename(tmp_path / "a.arrow")
    assert texts(remote(f"a.{suffix}", (tmp_path / f"a.{suffix}").read_bytes())) == ["a", "b"]


@pytest.mark.parametrize("name", ["memory://bucket", "memory://bucket/", "memory://bucket/*.jsonl"])
def test_remote_directories_and_patterns_are_read_by_split(remote, name):
    for path in ("train-1.jsonl", "train-2.jsonl", "test.jsonl", ".hidden/train.jsonl"):
        remote(path, lines(path))
    assert texts(name) == ["train-1.jsonl", "train-2.jsonl"]
    assert texts(name, split="test") == ["test.jsonl"]


def test_a_problem_names_the_url_and_the_line(remote):
    with pytest.raises(DataError, match=r"memory://bucket/a\.jsonl:2: not valid JSON"):
        texts(remote("a.jsonl", lines("a") + b"{"))


@pytest.mark.parametrize("name", ["memory://bucket/no.jsonl", "memory://nothing", "memory://nothing/*.jsonl"])
def test_a_missing_remote_file_is_an_error(remote, name):
    with pytest.raises(DataError, match=r"no such file|no data file"):
        texts(name)


@pytest.mark.parametrize(("url", "package"), [("s3://b/a.jsonl", "s3fs"), ("gs://b/*.jsonl", "gcsfs")])
def test_a_missing_package_is_named(monkeypatch, url, package):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=rf"needs the package {package} -> pip install {package}"):
        find_files(url, "train", "data.train")


def test_an_unknown_protocol_is_an_error():
    with pytest.raises(DataError, match="Protocol not known: nothing"):
        find_files("nothing://a.jsonl", "train", "data.train")


def test_changed_remote_data_is_prepared_again(remote):
    def prepare():
        config = {"data": {"train": remote_name, "max_length": 32}, "train": {"output_dir": "unused"}}
        return Pipeline(model=tiny_model(), tokenizer=tiny_tokenizer(), config=config).prepare().data

    remote_name = remote("a.jsonl", lines("a"))
    assert not prepare().cached
    assert prepare().cached == {"train"}
    remote("a.jsonl", lines("b"))
    assert not prepare().cached


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_remote_files_can_be_streamed(remote, tmp_path, suffix):
    content = lines("a", "b", "c")
    if suffix == "parquet":
        Dataset.from_dict({"text": ["a", "b", "c"]}).to_parquet(tmp_path / "a.parquet")
        content = (tmp_path / "a.parquet").read_bytes()
    data = {"train": remote(f"a.{suffix}", content), "streaming": True, "window": 3, "shuffle_buffer": 0}
    config = {"data": data, "train": {"output_dir": "unused", "max_steps": 1}}
    run = Pipeline(model=tiny_model(), tokenizer=tiny_tokenizer(), config=config)
    found = [tiny_tokenizer().decode(row["input_ids"]) for row in islice(run.prepare().data.train, 3)]
    assert sorted(text[3:4] for text in found) == ["a", "b", "c"]
