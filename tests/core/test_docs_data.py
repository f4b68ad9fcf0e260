"""The examples of docs/data.md are what preview shows."""

from __future__ import annotations

import re

import pytest

from sftkit import Pipeline
from sftkit.run.rows import read_batch
from sftkit_commands.preview.text import as_text

EXAMPLE = re.compile(r"```json\n(?P<row>[^`]*)\n```\n\n```text\n(?P<shown>[^`]*)\n```")


@pytest.fixture(scope="module")
def examples(root):
    found = [match.groupdict() for match in EXAMPLE.finditer((root / "docs" / "data.md").read_text(encoding="utf-8"))]
    assert len(found) >= 6
    return found


def test_examples_of_the_data_page_are_what_preview_shows(examples, tmp_path):
    for number, example in enumerate(examples):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(example["row"], encoding="utf-8")
        config = {"model": {"name": "demo", "init": "random"}, "data": {"train": str(path)}}
        ready = Pipeline(config=config).prepare()
        (row,) = read_batch([ready.data.train[0]], ready.collator, ready.tokenizer)
        text = as_text(row, ids=False, colour=False)
        assert f"── {row.title}\n{text}".rstrip() == example["shown"]
