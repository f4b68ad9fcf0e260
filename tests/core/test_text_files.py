"""JSON, CSV and text files in all their variants; what cannot be read is named by file and line."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma

import pytest

from sftkit.data.report import Report
from sftkit.data.text_files import text_rows
from sftkit.errors import DataError

ROWS = [{"text": "one"}, {"text": "two é"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def read(name, split="train", **options):
    report = Report("data.train", **options)
    return [read.row for read in text_rows(name, split, report)], report


def rows(tmp_path, name, content, **options):
    return read(write(tmp_path / name, content), **options)[0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", LINES),
        ("a.json", LINES),
        ("a.ndjson", LINES.replace("\n", "\r\n")),
        ("a.jsonl", "\ufeff" + LINES),
        ("a.jsonl", f"\n\n{LINES.strip()}\n \n"),
        ("a.json", json.dumps(ROWS)),
        ("a.json", "\ufeff" + json.dumps(ROWS, indent=2)),
        ("a.jsonl", json.dumps(ROWS)),
        ("a.json", json.dumps(["one", "two é"])),
        ("a.jsonl", "\n".join(json.dumps(row, indent=2) for row in ROWS)),
        ("a.json", json.dumps({"data": ROWS})),
        ("a.json", json.dumps({"data": ROWS}, indent=1)),
        ("a.json", json.dumps({"train": ROWS, "test": [{"text": "no"}]})),
        ("a.json", json.dumps({"dev": [{"text": "no"}], "training": ROWS})),
        ("a.json", json.dumps({"id-1": ROWS[0], "id-2": ROWS[1]})),
        ("a.csv", "text\none\ntwo é\n"),
        ("a.csv", "\ufefftext\r\none\r\ntwo é\r\n"),
        ("a.tsv", 'text\n"one"\n\ntwo é'),
        ("a.txt", "one\r\ntwo é"),
    ],
)
def test_every_variant_gives_the_same_rows(tmp_path, name, content):
    assert rows(tmp_path, name, content) == ROWS


COMPRESSED = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("suffix", COMPRESSED)
@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", LINES), ("a.csv", "text\none\ntwo é\n"), ("a.txt", "one\ntwo é\n")]
)
def test_text_files_may_be_compressed(tmp_path, suffix, name, content):
    assert rows(tmp_path, name + suffix, COMPRESSED[suffix](content.encode())) == ROWS


@pytest.mark.parametrize("suffix", [".zst", ".zstd"])
def test_zstandard_is_read(tmp_path, suffix):
    zstandard = pytest.importorskip("zstandard")
    assert rows(tmp_path, f"a.jsonl{suffix}", zstandard.compress(LINES.encode())) == ROWS


def test_the_package_for_zstandard_is_named(tmp_path, monkeypatch):
    monkeypatch.delitem(__import__("fsspec.compression", fromlist=["compr"]).compr, "zstd", raising=False)
    with pytest.raises(DataError, match="pip install zstandard"):
        rows(tmp_path, "a.jsonl.zst", b"")


def test_a_damaged_archive_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*a\.jsonl\.gz"):
        rows(tmp_path, "a.jsonl.gz", gzip.compress(LINES.encode(), mtime=0)[:-12])


def test_the_rows_of_another_split_of_a_json_file_are_counted(tmp_path):
    name = write(tmp_path / "a.json", json.dumps({"train": ROWS, "test": [{"text": "no"}]}))
    assert read(name)[1].notes == {"rows not read: other splits of a JSON file": 1}
    assert read(name, None)[0] == [{"text": "no"}]
    with pytest.raises(DataError, match="no split 'validation', but train, test"):
        read(name, "validation")


@pytest.mark.parametrize(
    ("value", "note"),
    [
        ({"data": ROWS, "version": 1}, "keys ignored beside the rows of a JSON file: version"),
        ({"a": ROWS[0], "b": ROWS[1]}, "ids of rows ignored: keys of the object in a JSON file"),
    ],
)
def test_what_is_not_used_of_a_json_object_is_counted(tmp_path, value, note):
    assert note in read(write(tmp_path / "a.json", json.dumps(value)))[1].notes


@pytest.mark.parametrize(
    "row",
    [{"messages": [{"role": "user", "content": "Hi"}]}, {"prompt": "a", "completion": "b"}, {"data": "text"}],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_one_object_can_be_a_row(tmp_path, row, indent):
    assert rows(tmp_path, "a.json", json.dumps(row, indent=indent)) == [row]


def test_one_line_of_json_lines_is_a_row_whatever_it_holds(tmp_path):
    assert rows(tmp_path, "a.jsonl", json.dumps({"data": ROWS})) == [{"data": ROWS}]


def test_columns_by_index_as_pandas_writes_them_are_refused(tmp_path):
    columns = {"prompt": {"0": "a", "1": "b"}, "completion": {"0": "c", "1": "d"}}
    with pytest.raises(DataError, match=r"not clear which of them are rows.*orient='records'"):
        rows(tmp_path, "a.json", json.dumps(columns))


def test_cells_are_text_and_empty_cells_are_null(tmp_path):
    cells = ["NA", "007", "1.0", "", '"', "a,b", "two\r\nlines", " x "]
    buffer = io.StringIO()
    csv.writer(buffer).writerows([[f"c{n}" for n in range(len(cells))], cells])
    (row,) = rows(tmp_path, "a.csv", buffer.getvalue())
    assert list(row.values()) == [cell or None for cell in cells]


def test_a_cell_may_be_long(tmp_path):
    assert rows(tmp_path, "a.csv", f"text\n{'x' * 200_000}\n") == [{"text": "x" * 200_000}]
    assert csv.field_size_limit() < 200_000


BROKEN = [
    ("a.jsonl", LINES + '{"text": \n', "a.jsonl:3: not valid JSON"),
    ("a.jsonl", '{"text": "x\n' + LINES, "a.jsonl:1: not valid JSON"),
    ("a.jsonl", LINES + "[1]\n", "a.jsonl:3: not a JSON object"),
    ("a.jsonl", LINES + r'{"text": "\ud83d"}', "a.jsonl:3: column 'text' has half of a surrogate pair"),
    ("a.jsonl", LINES + r'{"a": [{"b\udc00": 1}]}', "a.jsonl:3: column 'a' has half of a surrogate pair"),
    ("a.jsonl", LINES.encode() + b'{"text": "\xff"}\n', "a.jsonl:3: not valid UTF-8"),
    ("a.json", '[{"text": "one"}, {"text": "two \u00e9"}, "\\udc00"]', "a.json, row 3: column 'text' has half"),
    ("a.json", json.dumps([*ROWS, 3]), "a.json, row 3: not a JSON object: '3'"),
    ("a.csv", "text,x\none,1\ntwo é\n", "a.csv:3: the row has 1 cells, but the header has 2"),
    ("a.csv", 'text\none\n"two"é\n', "a.csv:3: not valid CSV"),
    ("a.txt", b"one\ntwo \xff\n", "a.txt:2: not valid UTF-8"),
    ("a.jsonl.gz", gzip.compress((LINES + "{").encode(), mtime=0), "a.jsonl.gz:3: not valid JSON"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN, ids=[message for *_, message in BROKEN])
def test_an_unreadable_line_is_reported_or_skipped(tmp_path, name, content, message):
    with pytest.raises(DataError) as caught:
        rows(tmp_path, name, content)
    assert message in str(caught.value)
    assert "data.on_bad_row=skip" in str(caught.value)
    kept, report = read(str(tmp_path / name), skip=True, limit=1)
    assert report.bad == 1
    assert len(kept) >= 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "prompt;completion\na;b\n", r"a\.csv:1: the header is one column.*by commas"),
        ("a.csv", "text,text\na,b\n", r"a\.csv:1: the column 'text' occurs twice"),
        ("a.jsonl", LINES.encode("utf-16"), r"the file is UTF-16"),
        ("a.jsonl", gzip.compress(LINES.encode(), mtime=0), "a.jsonl: the file is compressed with gzip, not text"),
        ("a.json", bz2.compress(LINES.encode()), "a.json: the file is compressed with bzip2, not text"),
        ("a.csv", b"PAR1\x15\x04", "a.csv: the file is a Parquet file, not text"),
        ("a.csv", "", "the file is empty"),
        ("a.json", '{"text":\n "x" y}', r"a\.json:2: not valid JSON"),
        ("a.json", '\n[{"text": "x"},\n\n{"text" "y"}]', r"a\.json:4: not valid JSON"),
        ("a.csv", 'text\n"never closed\n', r"a\.csv:2: not valid CSV"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_error(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        rows(tmp_path, name, content)


def test_half_an_emoji_written_as_a_whole_pair_is_text(tmp_path):
    assert rows(tmp_path, "a.jsonl", r'{"text": "\ud83d\ude00"}') == [{"text": "😀"}]


@pytest.mark.parametrize(
    ("content", "ignored"),
    [
        ({"type": "text_only", "instances": ROWS}, ["type"]),
        ({"features": [], "rows": [{"row_idx": at, "row": row} for at, row in enumerate(ROWS)]}, ["features"]),
    ],
)
def test_an_object_may_hold_its_rows_like_lmflow_or_the_viewer_of_the_hub(tmp_path, content, ignored):
    found, report = read(write(tmp_path / "a.json", json.dumps(content)))
    assert found == ROWS
    assert list(report.notes) == [f"keys ignored beside the rows of a JSON file: {key}" for key in ignored]
