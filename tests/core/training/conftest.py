"""Small runs that the tests of the training share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sftkit.run.pipeline import Pipeline
from sftkit.testing import tiny_model, tiny_tokenizer


def rows_of(answer: str) -> list[dict[str, str]]:
    """Eight rows of four lengths."""
    return [{"prompt": "### Question: ", "completion": answer * (1 + number % 4)} for number in range(8)]


@pytest.fixture
def rows() -> list[dict[str, str]]:
    """The rows that runs train on."""
    return rows_of("Paris is the capital of France. ")


@pytest.fixture
def held_out() -> list[dict[str, str]]:
    """Other rows, to evaluate on."""
    return rows_of("Rome is the capital of Italy. ")


@pytest.fixture
def make_run(tmp_path, rows):
    """Makes a pipeline of two steps of four rows in the directory ``name``; arguments as of `Pipeline`."""

    def make(
        name: str = "run", *, model: Any = None, data: Any = None, train: dict[str, Any] | None = None, **options: Any
    ) -> Pipeline:
        settings = {"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True, "seed": 0, **(train or {})}
        return Pipeline(
            model=tiny_model() if model is None else model,
            data=rows if data is None else data,
            tokenizer=tiny_tokenizer(),
            train={**settings, "output_dir": str(tmp_path / name)},
            **options,
        )

    return make


@pytest.fixture
def distance():
    """The largest difference between the weights of two models."""

    def largest(one: Any, two: Any) -> float:
        ours, theirs = one.state_dict(), two.state_dict()
        return max((value.float() - theirs[name].float()).abs().max().item() for name, value in ours.items())

    return largest


@pytest.fixture
def log_of():
    """The log entries of a run's result."""

    def read(result: Any) -> list[dict[str, Any]]:
        return [json.loads(line) for line in Path(result.directory, "log.jsonl").read_text().splitlines()]

    return read
