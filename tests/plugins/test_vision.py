"""Plugin vision: conversations with pictures, on tiny models of three kinds with the processors of their kind."""

from __future__ import annotations

import io
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from sftkit import Pipeline
from sftkit.errors import ConfigError, DataError
from sftkit.testing.pictures import drawn, tiny_vision_model

KINDS = ("llava", "qwen2_vl", "idefics3")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))


def asked(*parts: Any, answer: str = "Red.") -> list[dict[str, Any]]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in parts]
    return [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": answer}]},
    ]


def prepared(kind: str, rows: list[dict[str, Any]], **sections: Any) -> Any:
    model, processor = tiny_vision_model(kind)
    options = sections.pop("vision", {})
    pipeline = Pipeline(model=model, data=rows, tokenizer=processor, plugins=[{"vision": options}], config=sections)
    return pipeline.prepare()


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_what_the_processor_itself_makes(kind: str) -> None:
    one, two, three = drawn("red"), drawn("blue", (60, 90)), drawn("green", (33, 31))
    rows = [
        {"images": [one], "messages": asked(one, "What?")},
        {"images": [two, three], "messages": asked("First", two, "then", three, "which?", answer="Blue, green.")},
    ]
    ready = prepared(kind, rows)
    batch = ready.collator([ready.data.train[0], ready.data.train[1]])
    processor = ready.vocabulary.processor
    texts = [processor.apply_chat_template(row["messages"]) for row in rows]
    expected = processor(text=texts, images=[row["images"] for row in rows], return_tensors="pt", padding=True)
    assert set(expected) == set(batch) - {"labels", "row_shares"}
    for name, value in expected.items():
        assert torch.equal(batch[name], value), name
