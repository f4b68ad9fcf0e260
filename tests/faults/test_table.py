"""The page on faults: each row has a test, and each test a row."""

from __future__ import annotations

import re

import pytest

ROW = re.compile(r"^\| (\d+) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)
TEST = re.compile(r"^def (test_(\d\d)_\w+)\(", re.MULTILINE)


@pytest.fixture(scope="module")
def rows(root):
    """The rows of the table: number, and the files of its tests."""
    page = (root / "docs" / "faults.md").read_text(encoding="utf-8")
    return {int(number): re.findall(r"\[(\w+)\]", tests) for number, _, _, tests in ROW.findall(page)}


@pytest.fixture(scope="module")
def tests(root):
    """The files with tests of each row, found by the tests' names."""
    found: dict[int, set[str]] = {}
    for path in sorted((root / "tests" / "faults").glob("test_*.py")):
        for _, number in TEST.findall(path.read_text(encoding="utf-8")):
            found.setdefault(int(number), set()).add(path.stem.removeprefix("test_"))
    return found


def test_the_page_has_every_row_of_the_table(rows):
    assert sorted(rows) == list(range(1, 34))


def test_each_row_names_the_files_of_its_tests(rows, tests):
    assert {number: sorted(files) for number, files in rows.items()} == {
        number: sorted(files) for number, files in sorted(tests.items())
    }
