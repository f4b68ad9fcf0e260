"""JSON lines that workers read are the same rows, with the same types and places, as those that are read here."""

from __future__ import annotations

import json
import pickle

import pytest

from sftkit.config.models import DataSection
from sftkit.data.exact import BLOCK
from sftkit.data.pool import Pool
from sftkit.data.reading import read_files
from sftkit.data.threads import SameThread
from sftkit.errors import DataError

DATA = DataSection(train="x")


class Pickling(SameThread):
    """Runs jobs as another process would."""

    def submit(self, fn, /, *arguments, **options):
        return super().submit(*pickle.loads(pickle.dumps((fn, *arguments))))


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sftkit.data.json_blocks.PIECE", 1 << 15)  # several jobs


def text_lines(number):
    return [json.dumps({"prompt": f"é {n}" * (n % 7), "completion": f"{n}"}) for n in range(number)]


def some(number, value):
    return [json.dumps({"text": str(n), **value(n)}) for n in range(number)]


def turns(n):
    return [{"role": "user", "content": str(n)}] * (n % 3)


CASES = {
    "text": [text_lines(3 * BLOCK + 7)],
    "two files": [text_lines(BLOCK // 2 + 3), text_lines(2 * BLOCK)],
    "null at first": [some(2500, lambda n: {"more": None if n < 2200 else 3})],
    "numbers": [some(2500, lambda n: {"x": n if n < 1500 else n + 0.5})],
    "mixed": [some(3500, lambda n: {"x": [n, 0.5, "a", [1], {"a": 1}, None, True][(n // 450) % 7]})],
    "boolean, number, text": [some(2500, lambda n: {"x": [True, 1, "a"][n // 900]})],
    "empty lists": [some(3500, lambda n: {"turns": [] if n < 1200 else turns(n)})],
    "other keys": [some(2500, lambda n: {f"k{n // 700}": n, "turns": turns(n)})],
    "large numbers": [some(2500, lambda n: {"x": 10**30 if n == 2100 else n})],
    "escapes": [some(1500, lambda n: {"x": "\ud83d\ude00"})],
}


def assert_equal(one, other, number):
    assert one.rows.with_format("arrow")[:].to_pydict() == other.rows.with_format("arrow")[:].to_pydict()
    assert one.rows.features == other.rows.features
    assert (one.columns, one.mixed, one.bad, one.notes) == (other.columns, other.mixed, other.bad, other.notes)
    assert [one.place(row) for row in range(number)] == [other.place(row) for row in range(number)]


@pytest.mark.parametrize("case", CASES)
def test_the_rows_are_the_same(tmp_path, monkeypatch, case):
    names = []
    for at, lines in enumerate(CASES[case]):
        path = tmp_path / f"{at}.jsonl"
        path.write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
        names.append(str(path))
    here = read_files(names, "train", DATA, "data.train")
    monkeypatch.setattr("sftkit.data.reading.text_rows", lambda *_: pytest.fail("no worker has read the rows"))
    there = read_files(names, "train", DATA, "data.train", Pool(Pickling(), 2))
    assert_equal(here, there, sum(map(len, CASES[case])))


BAD = {"blank": "", "no row": "3", "no JSON": "{", "half a character": '{"prompt": "\\ud83d"}'}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_row_is_skipped_or_an_error_as_without_workers(tmp_path, case):
    path = tmp_path / "a.jsonl"
    lines = text_lines(2500)
    lines[1800] = BAD[case]
    path.write_text("\n".join(lines), encoding="utf-8")
    pool = Pool(Pickling(), 2)
    skip = DATA.model_copy(update={"on_bad_row": "skip"})
    found = [read_files([str(path)], "train", skip, "data.train", each) for each in (None, pool)]
    assert_equal(*found, 2499)
    assert found[0].place(1800).endswith("a.jsonl:1802")
    if case != "blank":
        with pytest.raises(DataError, match=r"a\.jsonl:1801"):
            read_files([str(path)], "train", DATA, "data.train", pool)


@pytest.mark.parametrize("text", ["", '[{"text": "a"}]', '{"data": [{"text": "a"}]}'])
def test_other_files_are_read_as_a_whole(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    names, pool = [str(tmp_path / "a.json")], Pool(Pickling(), 2)
    if text:
        assert list(read_files(names, "train", DATA, "data.train", pool).rows["text"]) == ["a"]
    else:
        with pytest.raises(DataError, match="the file is empty"):
            read_files(names, "train", DATA, "data.train", pool)
