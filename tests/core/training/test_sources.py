"""The loss of each data source: exact, in evaluations and in training, of packed rows and streams too."""

from __future__ import annotations

import json
from itertools import islice

import numpy as np
import pytest
import torch

from sftkit import Pipeline
from sftkit.data.sources import StreamSource, source_labels
from sftkit.testing import tiny_model, tiny_tokenizer
from sftkit.training.batches import WithPositions

BOTH = {"a": "Paris is the capital of France. ", "b": "No. "}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A file for each source, with rows of four lengths."""
    directory, paths = tmp_path_factory.mktemp("sources"), {}
    for name, answer in BOTH.items():
        rows = [{"prompt": "### Question: ", "completion": answer * (1 + number % 4)} for number in range(8)]
        paths[name] = str(directory / f"{name}.jsonl")
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return paths


def trained(tmp_path, data, name="run", plugins=()):
    """What a run of one step has logged, which hardly changes the weights."""
    settings = {"max_steps": 1, "per_device_train_batch_size": 16, "use_cpu": True, "learning_rate": 1e-12}
    train = {**settings, "logging_steps": 1, "output_dir": str(tmp_path / name)}
    data, plugins = {"max_length": 64, **data}, ["no:checks", *plugins]  # which notice that both sets are the same
    Pipeline(model=tiny_model(), tokenizer=tiny_tokenizer(), data=data, plugins=plugins, train=train).run()
    entries = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
    return {key: value for entry in entries for key, value in entry.items()}


@pytest.fixture(scope="module")
def alone(files, tmp_path_factory):
    """The evaluation loss of each source, of a model that is not trained."""
    data = {"train": files["a"], "eval": files}
    log = trained(tmp_path_factory.mktemp("alone"), data)
    assert "loss_a" not in log, "with a single source of training data, its loss is the loss"
    return {name: log[f"eval_{name}_loss"] for name in files}


@pytest.mark.parametrize(
    ("data", "plugins"),
    [
        ({"train": ["a", "b"], "eval": ["a", "b"]}, []),
        ({"mix": {"a": 1, "b": 1}, "eval": ["a", "b"]}, [{"packing": {"eval": True}}]),
        pytest.param({"mix": {"a": 1, "b": 1}, "streaming": True, "window": 16}, ["packing"], marks=pytest.mark.slow),
        pytest.param({"mix": {"a": 1, "b": 1}}, [{"pad": {"to_multiple_of": 8}}], marks=pytest.mark.slow),
    ],
    ids=["files", "packed mix", "packed stream", "padded mix"],
)
def test_the_loss_of_each_source_is_that_of_the_source_alone(tmp_path, files, alone, data, plugins):
    named = {
        key: {files[name]: weight for name, weight in value.items()}
        if isinstance(value, dict)
        else [files[name] for name in value]
        for key, value in data.items()
        if isinstance(value, dict | list)
    }
    log = trained(tmp_path, {**data, **named}, plugins=plugins)
    for name, loss in alone.items():
        if not data.get("streaming"):  # which draws rows at random, of four lengths
            assert log[f"loss_{name}"] == pytest.approx(loss, rel=1e-5)
        assert f"loss_{name}" in log
        assert log.get(f"eval_loss_{name}", loss) == pytest.approx(loss, rel=1e-5)
    assert ("eval_loss_a" in log) == ("eval" in data)


def test_the_manifest_counts_the_tokens_of_each_source(tmp_path, files):
    data = {"train": list(files.values()), "max_length": 64}
    prepared = Pipeline(model=tiny_model(), tokenizer=tiny_tokenizer(), data=data).prepare().data
    counts = prepared.summary()["train"]
    for key in ("tokens", "trained tokens"):
        assert sum(source[key] for source in counts["sources"].values()) == counts[key]
    assert set(counts["sources"]) == {"a", "b"}
    assert prepared.train.column_names == ["input_ids", "labels"], "collators never see the column of the sources"


def test_a_stream_gives_the_sources_of_its_tokens_only_on_request(files):
    mix = dict.fromkeys(files.values(), 1)
    data = {"mix": mix, "streaming": True, "window": 16, "max_length": 64}
    run = Pipeline(model=tiny_model(), tokenizer=tiny_tokenizer(), data=data, train={"max_steps": 1})
    stream = run.prepare().data.train
    for plain, row in zip(islice(stream, 8), islice(stream.with_sources(), 8), strict=True):
        is_b = "No" in tiny_tokenizer().decode(row["input_ids"])
        assert "sources" not in plain
        assert {*row["sources"].tolist()} == {int(is_b)}
        assert len(row["sources"]) == len(row["input_ids"])


def left_padded(examples):
    width = max(len(example["input_ids"]) for example in examples)
    rows = [np.pad(example["input_ids"], (width - len(example["input_ids"]), 0)) for example in examples]
    ids = torch.tensor(np.array(rows))
    return {"input_ids": ids, "labels": ids}


def test_tokens_that_the_collator_moves_have_an_unknown_source_unless_their_row_has_one():
    collate = WithPositions(left_padded)
    one = {"input_ids": np.array([5, 6]), "sources": np.array([1, 1])}
    other = {"input_ids": np.array([5, 6, 7]), "sources": np.array([0, 0, 0])}
    assert collate([one, other])["source_numbers"].tolist() == [[1, 1, 1], [0, 0, 0]]
    packed = {"input_ids": np.array([5, 6]), "sources": np.array([0, 1])}
    assert "source_numbers" not in collate([packed, other])


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["data/wiki.jsonl", "code.jsonl"], ["wiki", "code"]),
        (["a/train.jsonl", "b/train.jsonl"], ["a_train.jsonl", "b_train.jsonl"]),
        (["x/*.jsonl", "org/set"], ["_", "set"]),
    ],
)
def test_sources_are_named_briefly_but_never_alike(names, labels):
    assert source_labels([StreamSource("data.mix", {}, lambda: None, names=(name,)) for name in names]) == labels
