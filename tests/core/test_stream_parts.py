"""The processes of a stream share its files: each row is read by one of them, and none reads a large file alone."""

from __future__ import annotations

import json
import logging
import random
from itertools import pairwise

import pyarrow as pa
import pytest
from datasets import Dataset

from sftkit.data.lines import Lines
from sftkit.data.parts import divide, divided
from sftkit.data.report import Report
from sftkit.data.sources import load_streams
from sftkit.data.stream_rows import PLACE, FileRows, Pass
from sftkit.errors import DataError
from sftkit.testing import tiny_config


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr("sftkit.data.parts.PART", 1)


def write(directory, kind, sizes, chooser):
    """Files with numbered rows of different lengths; returns their names and all rows."""
    names, texts = [], []
    for number, size in enumerate(sizes):
        some = [f"{number}-{row} {'é' * chooser.randrange(40)}" for row in range(size)]
        path = directory / f"{number}.{kind}"
        if kind == "parquet":
            Dataset.from_dict({"text": some}).to_parquet(path, batch_size=chooser.choice([4, 50]))
        elif kind == "arrow":
            table = Dataset.from_dict({"text": some}).data.table
            with pa.ipc.new_file(str(path), table.schema) as writer:
                writer.write_table(table, max_chunksize=chooser.choice([4, 50]))
        elif kind == "txt":
            path.write_text("\n".join(some) + "\n" * chooser.randrange(2), encoding="utf-8")
        elif kind == "csv":
            path.write_text("text\n" + "".join(f'"{text}\nmore"\n' for text in some), encoding="utf-8")
            some = [f"{text}\nmore" for text in some]
        else:
            blank = "\n" * chooser.randrange(2)
            path.write_text("".join(json.dumps({"text": text}) + "\n" + blank for text in some), encoding="utf-8")
        names.append(str(path))
        texts += some
    return names, texts


def read(rows, rank, world, number=0, buffer=0, at=()):
    of = Pass(number, 7, buffer, rank, world)
    return [(place, row["text"]) for place, row in rows.rows(of, Report("data.train"), list(at))]


@pytest.mark.parametrize("kind", ["jsonl", "txt", "parquet", "arrow", "csv"])
def test_each_row_is_read_once_in_each_pass(tmp_path, kind):
    chooser = random.Random(kind)
    for files in (1, 2, 5):
        directory = tmp_path / str(files)
        directory.mkdir()
        sizes = [chooser.randrange(1, 40) for _ in range(files)]
        names, texts = write(directory, kind, sizes, chooser)
        rows = FileRows.of(names, "train", "data.train")
        for world in (1, 2, 3, 8):
            for number, buffer in ((0, 0), (0, 5), (1, 5)):
                found = [text for rank in range(world) for _, text in read(rows, rank, world, number, buffer)]
                assert sorted(found) == sorted(texts)


@pytest.mark.parametrize("kind", ["jsonl", "txt", "parquet", "arrow", "csv"])
def test_a_part_continues_after_each_of_its_rows(tmp_path, kind):
    names, _ = write(tmp_path, kind, [31, 12], random.Random(0))
    rows = FileRows.of(names, "train", "data.train")
    for rank in range(3):
        whole = read(rows, rank, 3, buffer=5)
        for index, (at, _) in enumerate(whole):
            assert read(rows, rank, 3, buffer=5, at=json.loads(json.dumps(at))) == whole[index + 1 :]


def test_each_process_reads_about_its_part_of_the_bytes(tmp_path, monkeypatch):
    (name,), _ = write(tmp_path, "jsonl", [4000], random.Random(0))
    rows = FileRows.of([name], "train", "data.train")
    taken = []
    within = Lines.within

    def counted(self, part, place):
        for line in within(self, part, place):
            taken[-1] += len(line.text)
            yield line

    monkeypatch.setattr(Lines, "within", counted)
    for rank in range(8):
        taken.append(0)
        read(rows, rank, 8)
    share = sum(taken) / 8
    assert all(0.9 * share < size < 1.1 * share for size in taken)


@pytest.mark.parametrize(("sizes", "number"), [([10] * 16, 8), ([5, 50, 5, 1], 3), ([7], 4), ([1], 8)])
def test_row_groups_are_only_cut_if_there_are_too_few(sizes, number):
    parts = divided(sizes, number)
    assert (parts[0][0], parts[-1][1], len(parts)) == (0, sum(sizes), number)
    assert all(one[1] == other[0] for one, other in pairwise(parts))
    if len(sizes) >= number:
        borders = {sum(sizes[:at]) for at in range(len(sizes) + 1)}
        assert {border for part in parts for border in part} <= borders


def test_a_shuffled_stream_gives_a_process_another_part_in_each_pass(tmp_path):
    names, _ = write(tmp_path, "jsonl", [64], random.Random(0))
    rows = FileRows.of(names, "train", "data.train")
    seen = {tuple(text for _, text in read(rows, 0, 4, number, buffer=5)) for number in range(8)}
    assert 1 < len(seen) <= 4


@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_errors_in_a_part_name_the_byte_of_the_line(tmp_path, kind):
    lines = [json.dumps({"text": f"row {n}"}).encode() + b"\n" for n in range(40)]
    lines[30] = b'{"text": "\xff"}\n'
    path = tmp_path / f"a.{kind}"
    path.write_bytes(b"".join(lines))
    rows = FileRows.of([str(path)], "train", "data.train")
    byte = sum(map(len, lines[:30]))
    with pytest.raises(DataError, match=rf"a\.{kind}, the line at byte {byte}: not valid UTF-8"):
        read(rows, 1, 2)
    first = next(rows.rows(Pass(0, 7, 0, 1, 2), Report("data.train"), []))[1]
    line = path.read_bytes()[int(first[PLACE].rpartition(" ")[2]) :].splitlines()[0].decode()
    assert line == (first["text"] if kind == "txt" else json.dumps({"text": first["text"]}))


def test_what_cannot_be_divided_is_read_by_all_and_logged(tmp_path, caplog):
    import gzip

    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(b'{"text": "a"}\n{"text": "b"}\n'))
    with caplog.at_level(logging.INFO, "sftkit"):
        rows = FileRows.of([str(packed)], "train", "data.train")
        assert [[text for _, text in read(rows, rank, 2)] for rank in range(2)] == [["a"], ["b"]]
    assert caplog.messages == [
        f"data.train, {packed}: it cannot be divided, so every process reads all of it and uses its share"
    ]
    array = tmp_path / "a.json"
    array.write_text('[{"text": "a"}, {"text": "b"}]')
    assert divide(str(array), 2, "data.train") is None


def test_what_cannot_be_divided_is_logged_once_for_all_passes(tmp_path, caplog):
    array = tmp_path / "a.json"
    array.write_text('[{"text": "a"}, {"text": "b"}]')
    config = tiny_config(data={"train": str(array), "streaming": True}, train={"max_steps": 1})
    ((source, _),) = load_streams(config)
    with caplog.at_level(logging.INFO, "sftkit"):
        assert [list(read(source.load(), rank, 2)) for rank in (0, 1, 0)]
    assert len(caplog.messages) == 1


def test_a_remote_file_is_divided(tmp_path):
    import fsspec

    system = fsspec.filesystem("memory")
    texts = [f"row {n}" for n in range(50)]
    system.pipe("/parts/a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts).encode())
    rows = FileRows.of(["memory://parts/a.jsonl"], "train", "data.train")
    shares = [[text for _, text in read(rows, rank, 4)] for rank in range(4)]
    assert [text for share in shares for text in share] == texts
    assert all(shares)
    system.rm("/parts", recursive=True)


def test_saved_data_are_divided_by_rows(tmp_path):
    saved = Dataset.from_dict({"text": [f"row {n}" for n in range(50)]})
    rows = FileRows.of_saved("saved", saved)
    assert [len(read(rows, rank, 4)) for rank in range(4)] == [12, 13, 12, 13]
