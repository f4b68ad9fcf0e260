"""Attachments of documents reach the collator, whichever way the data takes."""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import pyarrow as pa
import pytest
from datasets import Dataset, Image

from sftkit import Pipeline, Plugin, dataclass, hookimpl
from sftkit.data.columns import Examples
from sftkit.data.documents import DocumentWithAttachment, Formatter, Span
from sftkit.data.media import read_rows
from sftkit.errors import ConfigError, DataError
from sftkit.testing import tiny_model, tiny_tokenizer


@plain_dataclass(frozen=True)
class Numbered(Formatter):
    """Attaches a number to each text."""

    uncut: tuple[int, ...] = ()

    @property
    def attached_type(self) -> Any:
        return pa.struct([("number", pa.int64()), ("name", pa.string())])

    @property
    def uncut_ids(self) -> tuple[int, ...]:
        return self.uncut

    def __call__(self, rows: Any) -> Any:
        pairs = zip(rows["text"], rows["number"], strict=True)
        return [
            DocumentWithAttachment([Span(text, True)], {"number": number, "name": f"n{number}"}, {"numbers": 1})
            for text, number in pairs
        ]


@dataclass(frozen=True, kw_only=True)
class Numbers(Plugin):
    """Attaches numbers."""

    uncut: str = ""

    @hookimpl
    def make_formatter(self, tokenizer: Any) -> Formatter:
        return Numbered(tuple(tokenizer(self.uncut, add_special_tokens=False)["input_ids"]) if self.uncut else ())


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))


def rows(number: int = 6) -> list[dict[str, Any]]:
    return [{"text": "a" * (at + 1), "number": at} for at in range(number)]


def ready(data: Any, plugins: Any = ("numbers",), **settings: Any) -> Any:
    chosen = [Numbers() if name == "numbers" else name for name in plugins]
    run = {"model": tiny_model(), "tokenizer": tiny_tokenizer(), "data": data}
    return Pipeline(**run, plugins=chosen, config={"data": settings}, train={"max_steps": 1}).prepare()


@pytest.mark.parametrize("cache", [True, False])
def test_each_example_has_its_attachment(cache: bool) -> None:
    found = ready(rows(), cache=cache)
    assert [example["attached"]["number"] for example in found.data.train] == list(range(6))
    assert found.data.train[2]["attached"]["name"] == "n2"
    assert found.data.counts.by_split["train"]["numbers"] == 6


def test_truncation_keeps_attachments() -> None:
    dropped = ready(rows(), max_length=4, truncation="drop").data.train  # BOS, the text, EOS
    assert [example["attached"]["number"] for example in dropped] == [0, 1]
    cut = ready(rows(), max_length=4).data.train
    assert [example["attached"]["number"] for example in cut] == list(range(6))


def test_a_stream_keeps_attachments() -> None:
    found = ready(Dataset.from_list(rows()).to_iterable_dataset(), streaming=True, window=6)
    stream = iter(found.data.train)
    for example in (next(stream) for _ in range(6)):
        assert len(example["input_ids"]) == example["attached"]["number"] + 3


def test_fingerprints_and_duplicates_depend_on_attachments() -> None:
    other = [{**row, "number": 7} for row in rows()]
    prints = [ready(data).data.described["train"]["fingerprint"] for data in (rows(), other)]
    assert prints[0] != prints[1]
    same = [{"text": "same", "number": at % 2} for at in range(4)]
    assert ready(same).data.stats["train"].duplicates == 2


def test_truncating_an_uncut_token_is_an_error_with_its_row() -> None:
    data = [{"text": "aa", "number": 0}, {"text": "bbbbbbbbbbbbX", "number": 1}]
    run = {"model": tiny_model(), "tokenizer": tiny_tokenizer(), "data": data, "plugins": [Numbers(uncut="X")]}
    with pytest.raises(DataError, match="would truncate an image") as caught:
        Pipeline(**run, config={"data": {"max_length": 8}}).prepare()
    assert "row 2" in str(caught.value)
    Pipeline(**run, config={"data": {"max_length": 8, "truncation": "drop"}}).prepare()


def test_documents_with_attachments_cannot_be_packed() -> None:
    with pytest.raises(ConfigError, match="attachments, such as images, cannot be packed"):
        ready(rows(), ["numbers", "packing"])


def test_selecting_examples_keeps_attachments() -> None:
    import numpy as np

    parts = [
        Examples(np.arange(3, dtype=np.int32), np.arange(3, dtype=np.int32), np.array([0, 1, 3]), None, pa.array(names))
        for names in (["a", "b"], ["c", "d"])
    ]
    both = Examples.concatenate(parts)
    assert both.take(np.array([3, 0])).attached_N.to_pylist() == ["d", "a"]
    assert both.where(np.array([True, False, False, True])).attached_N.to_pylist() == ["a", "d"]
    assert both.table()["attached"].to_pylist() == ["a", "b", "c", "d"]


def test_images_in_rows_are_read_without_decoding() -> None:
    data = Dataset.from_list([{"image": PIL.Image.new("RGB", (8, 8), "red"), "text": "a"}])
    assert isinstance(data.features["image"], Image)
    (value,) = read_rows(data, slice(0, 1))["image"]
    assert value["bytes"].startswith(b"\x89PNG")
    assert data.features["image"].decode
