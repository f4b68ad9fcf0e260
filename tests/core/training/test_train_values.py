"""Values of the section `train` and their defaults, without an import of transformers."""

from __future__ import annotations

import pytest
from transformers import TrainingArguments

from sftkit.config.json_schema import train_schema
from sftkit.config.source import ConfigSource
from sftkit.config.train_fields import DEFAULTS, train_value
from sftkit.plugin.resolve import resolve


def configured(**train):
    return resolve(ConfigSource({"model": {"name": "demo", "init": "random"}, "data": "a.jsonl", "train": train}))[0]


def test_a_configured_value_overrides_the_default():
    assert train_value(configured(seed=7), "seed") == 7


@pytest.mark.parametrize("name", ["seed", "per_device_train_batch_size", "num_train_epochs", "max_steps"])
def test_a_value_that_is_not_configured_is_the_default_of_transformers(tmp_path, name):
    assert train_value(configured(), name) == getattr(TrainingArguments(str(tmp_path)), name)


def test_defaults_of_sftkit_override_those_of_transformers():
    assert train_value(configured(), "logging_steps") == DEFAULTS["logging_steps"] != TrainingArguments().logging_steps


def test_the_schema_shows_the_defaults_of_sftkit():
    assert train_schema()["properties"]["save_total_limit"]["default"] == DEFAULTS["save_total_limit"]


def test_an_unknown_field_has_no_value():
    with pytest.raises(KeyError):
        train_value(configured(), "no_such_field")
