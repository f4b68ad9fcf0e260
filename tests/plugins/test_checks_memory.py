"""The verdict on a run's memory."""

from __future__ import annotations

import pytest

from sftkit import Pipeline
from sftkit.memory import DeviceMemory
from sftkit.testing import tiny_model, tiny_tokenizer

ROWS = [{"prompt": f"question {n}? ", "completion": f"answer {n}"} for n in range(20)]


@pytest.fixture
def verdict(tmp_path):
    """The verdict on the memory of a run of a model."""

    def of(model):
        train = {"output_dir": str(tmp_path / "run"), "use_cpu": True}
        run = Pipeline(model=model, data=ROWS, tokenizer=tiny_tokenizer(), train=train).prepare()
        return next(verdict for verdict in run.verdicts() if verdict.name == "memory")

    return of


def test_a_run_that_fits_lists_its_items(verdict):
    found = verdict(tiny_model())
    assert found.status == "ok"
    assert found.details["fits"] is True
    assert found.details["total"] == sum(found.details["items"].values()) < found.details["available"]


def test_a_run_that_does_not_fit_is_wrong_with_a_fix(verdict, monkeypatch):
    monkeypatch.setattr("sftkit.memory.estimate.memory_of", lambda _: DeviceMemory("cpu", 10**8, 10**8 + 10**6))
    found = verdict(tiny_model())
    assert found.status == "wrong"
    assert "per_device_train_batch_size" in found.fix


def test_a_run_of_unknown_memory_is_not_wrong(verdict):
    found = verdict("owner/name")
    assert found.status == "ok"
    assert "not known before the model is loaded: there is no local configuration of 'owner/name'" in found.what
