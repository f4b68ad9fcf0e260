"""The JSON schema accepts what sftkit accepts, tried with a validator."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from pydantic import ValidationError

from sftkit.config.models import DataSection, ModelSection, RunConfig
from sftkit.config.source import ConfigSource
from sftkit.config.train_checks import value_problems
from sftkit.config.train_fields import allowed_fields, check_train
from sftkit.errors import ConfigError
from sftkit.plugin import registry, select
from sftkit.plugin.resolve import resolve
from sftkit.plugin.schema import config_schema

ROOT = Path(__file__).parents[2]
SCHEMA = config_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
BASE = {"model": {"name": "demo"}, "data": "demo"}
ADDED_TO = {"model": {"name": "demo"}, "data": {"train": "demo"}}
FILES = [*ROOT.glob("examples/*.yaml"), ROOT / "sftkit" / "demo" / "run.yaml"]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*.md")]
#: Values as YAML reads them, and as people quote them.
VALUES = [
    True, False, None, 0, 1, 2.0, 10, 0.5, -1, "2e-3", "5", "0.5", "true", "no", "none", "null", "epoch", "text",
    [], ["text"], {}, {"a": 1}, '{"a": 1}', "inf",
]  # fmt: skip


def errors(config):
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(config)]


def blocks():
    """The YAML blocks of the pages that consist of sections, also when they leave some out."""
    for page in PAGES:
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            loaded = yaml.safe_load(block)
            if isinstance(loaded, dict) and set(loaded) <= set(RunConfig.model_fields):
                if ", given after " in block:  # it adds to another file
                    loaded = {name: {**ADDED_TO.get(name, {}), **section} for name, section in loaded.items()}
                yield pytest.param({**BASE, **loaded}, id=f"{page.relative_to(ROOT)}: {block[:30]!r}")


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_example_is_valid(path):
    assert errors(yaml.safe_load(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("config", blocks())
def test_every_block_of_the_documentation_is_valid(config):
    assert errors(config) == []


@pytest.mark.parametrize("field", allowed_fields())
def test_a_value_of_a_training_argument_that_sftkit_accepts_is_valid(field):
    for value in VALUES:
        coerced, wrong = check_train({field: value})
        if (field, value) != ("trackio_static_space_id", 0) and not wrong and not list(value_problems(coerced)):
            assert errors({**BASE, "train": {field: value}}) == [], value


@pytest.mark.parametrize(("section", "cls"), [("model", ModelSection), ("data", DataSection)])
def test_a_value_of_the_sections_that_sftkit_accepts_is_valid(section, cls, monkeypatch):
    known = registry.discover()  # once: it reads the metadata of every installed distribution
    for module in (registry, select):
        monkeypatch.setattr(module, "discover", lambda: known)
    accepted = 0
    for field, value in itertools.product(cls.model_fields, VALUES):
        config = {"model": {"name": "demo"}, "data": {"train": "demo"}}
        config[section] = {**config[section], field: value}
        if field == "mix":
            del config["data"]["train"]
        try:
            cls.model_validate(config[section])  # what this refuses, `resolve` refuses too, but slowly
            resolved = resolve(ConfigSource(config), trains=False)[0]
        except (ConfigError, ValidationError):
            continue
        if not isinstance(value, bool) or getattr(getattr(resolved, section), field) is value:  # and no number
            accepted += 1
            assert errors(config) == [], config
    assert accepted > len(cls.model_fields)


@pytest.mark.parametrize(
    "config",
    [
        {"data": ["a.jsonl", "b.jsonl"]},
        {"data": {"mix": {"a.jsonl": 3, "b.jsonl": "1.5"}, "eval": {"a": "c.jsonl", "b": ["d.jsonl"]}}},
        {"train": None, "plugins": None},
        {"plugins": {"Flash-Attn": {"padding_free": True}, "NEFTune": None}},
        {"train": {"learning_rate": "2e-3", "save_strategy": False, "max_steps": 10.0, "lr_scheduler_kwargs": None}},
        {"plugins": ["packing", "neftune:alpha=2", "no:pad", {"peft": {"r": 8}}, {"packing": None}, {"hf": False}]},
        {"plugins": {"packing": None, "neftune": {"alpha": "5e-1"}, "pad": False, "loss": True, "no:checks": {}}},
        {"plugins": {"own_plugin:Own": {"option": 1}}},
    ],
    ids=str,
)
def test_the_forms_that_a_section_can_have_are_valid(config):
    assert errors({**BASE, **config}) == []


@pytest.mark.parametrize(
    "config",
    [
        {"modle": "demo"},
        {"model": {"name": "demo", "dtype": "int3"}},
        {"data": {"max_lenght": 5, "train": "demo"}},
        {"data": {"train": "demo", "max_length": 0}},
        {"data": {"max_length": 5}},
        {"train": {"learning_rate": "fast"}},
        {"train": {"lerning_rate": 1}},
        {"train": {"eval_strategy": "sometimes"}},
        {"train": {"seed": True}},
        {"plugins": {"neftune": {"alhpa": 1}}},
        {"plugins": {"nefftune": {}}},
        {"plugins": [{"packing": {}, "pad": {}}]},
    ],
    ids=str,
)
def test_what_sftkit_refuses_by_its_form_is_not_valid(config):
    assert errors({**BASE, **config}) != []
