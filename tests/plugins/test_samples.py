"""Held-out completions before and after, which leave the training as it is."""

from __future__ import annotations

import json

import pytest
import torch

from sftkit.errors import ConfigError
from sftkit.pipeline import Pipeline
from sftkit.testing import tiny_config, tiny_model, tiny_tokenizer
from sftkit_plugins.samples import Samples
from sftkit_plugins.samples.callback import Sample, last_completion

ROWS = [{"prompt": f"What is {number}?", "completion": " Paris"} for number in range(8)]


def run(tmp_path, name, plugins, **train):
    train = {"max_steps": 3, "use_cpu": True, "seed": 0, "learning_rate": 1e-2, **train}
    return Pipeline(
        model=tiny_model(attention_dropout=0.1),
        tokenizer=tiny_tokenizer(),
        data=ROWS,
        eval=ROWS[:4],
        plugins=plugins,
        train={**train, "output_dir": str(tmp_path / name)},
    ).run()


def test_the_reference_is_the_last_trained_part_and_the_prompt_is_what_stands_before_it():
    example = {"input_ids": [1, 2, 3, 4, 5, 6], "labels": [-100, 2, -100, 4, 5, -100]}
    assert last_completion(example) == Sample([1, 2, 3], [4, 5])
    assert last_completion({"input_ids": [1, 2], "labels": [-100, -100]}) is None


def test_completions_and_exact_match_are_stored_before_and_after(tmp_path):
    result = run(tmp_path, "a", [Samples(shown=3)], max_steps=60)
    lines = [json.loads(line) for line in (result.directory / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == 3
    assert {line["reference"] for line in lines} == {"Paris"}
    assert [line["exact_after"] for line in lines] == [line["after"] == "Paris" for line in lines]
    assert result.metrics["eval_exact_match_before"] == 0.0
    assert result.metrics["eval_exact_match"] == 1.0
    assert {"eval_exact_match", "eval_exact_match_before"} <= set(
        json.loads((result.directory / "manifest.json").read_text())["metrics"]
    )


def test_training_is_bitwise_the_same_with_and_without(tmp_path):
    one, two = run(tmp_path, "with", [Samples(rows=2)]), run(tmp_path, "without", [])
    for name, value in one.model.state_dict().items():
        assert torch.equal(value, two.model.state_dict()[name]), name


def test_packed_evaluation_data_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not packed"):
        run(tmp_path, "packed", [Samples(), "packing:eval=true"])


def test_it_needs_held_out_data():
    (problem,) = Samples().check_run(tiny_config())
    assert "data.eval" in f"{problem.where} {problem.mend}"
