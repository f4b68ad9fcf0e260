"""Configuration from YAML, overrides and Python; all mistakes are reported at once, with their place and a fix."""

from __future__ import annotations

import subprocess
import sys

import pytest

from sftkit.cli.options import gather
from sftkit.config.assignments import parse_value, split_options
from sftkit.config.models import RunSection
from sftkit.config.source import ConfigSource, read_yaml
from sftkit.errors import ConfigError, DataError, Problem
from sftkit.plugin.registry import discover
from sftkit.plugin.resolve import resolve
from sftkit.plugin.schema import config_schema
from sftkit.run.inputs import RunInputs
from sftkit.run.pipeline import Pipeline
from sftkit.run.resolving import resolve_run
from sftkit.testing import tiny_config


def write(tmp_path, text):
    path = tmp_path / "sft.yaml"
    path.write_text(text)
    return path


def problems_of(path):
    with pytest.raises(ConfigError) as raised:
        resolve(read_yaml(path))
    return str(raised.value)


def test_short_and_long_forms_are_equal(tmp_path):
    short, _ = resolve(ConfigSource({"model": {"name": "demo", "init": "random"}, "data": "a.jsonl"}))
    long, _ = resolve(ConfigSource({"model": {"name": "demo", "init": "random"}, "data": {"train": "a.jsonl"}}))
    assert short == long


def test_every_unknown_key_is_reported_with_file_and_line(tmp_path):
    text = problems_of(
        write(
            tmp_path,
            "model: {name: demo, nmae: x}\n"
            "data:\n  train: a.jsonl\n  max_lenght: 5\n"
            "train:\n  lerning_rate: 1\n  max_steps: many\n"
            "plugins:\n  neftune:\n    alhpa: 3\n"
            "modle: x\n",
        )
    )
    assert "sft.yaml:1, model.nmae: no such key -> did you mean 'name'?" in text
    assert "sft.yaml:4, data.max_lenght: no such key -> did you mean 'max_length'?" in text
    assert "sft.yaml:6, train.lerning_rate: no such training argument -> did you mean 'learning_rate'?" in text
    assert "sft.yaml:7, train.max_steps: 'many' is of the wrong type -> use a whole number" in text
    assert "sft.yaml:10, plugins.neftune.alhpa: no such option -> did you mean 'alpha'?" in text
    assert "sft.yaml:11, modle: no such section -> did you mean 'model'?" in text


def test_a_key_without_its_section_is_named_with_it(tmp_path):
    text = problems_of(write(tmp_path, "model: demo\ndata: a\nlearning_rate: 1\nmax_length: 3\n"))
    assert "sft.yaml:3, learning_rate: no such section -> it is a key: write train.learning_rate" in text
    assert "sft.yaml:4, max_length: no such section -> it is a key: write data.max_length" in text


def test_plugins_are_not_asked_if_something_is_wrong_already(monkeypatch):
    def asked(*arguments):
        raise AssertionError("this may import torch, and takes seconds")

    monkeypatch.setattr("sftkit.plugin.resolve._ask_plugins", asked)
    occupied = Problem("the output directory holds a run already", "runs/a", "")
    with pytest.raises(ConfigError, match="holds a run already"):
        resolve_run(ConfigSource({"model": "demo", "data": "a.jsonl"}), [], RunInputs(), [occupied])


def test_options_of_plugins_are_found_for_misplaced_keys(tmp_path):
    text = problems_of(
        write(
            tmp_path,
            "model: demo\ndata:\n  train: a\n  loss: all\n"
            "train: {packing: true, neftune_noise_alpha: 5, dataset_text_field: body, max_seq_length: 64}\n"
            "fsdp: true\n",
        )
    )
    assert "sft.yaml:4, data.loss: no such key -> it is an option of plugin formats: set plugins.formats.loss" in text
    assert "train.packing: no such training argument -> select plugin packing" in text
    assert "train.neftune_noise_alpha: cannot be set here -> select plugin neftune and set its option alpha" in text
    assert (
        "train.dataset_text_field: no such training argument -> select plugin formats and set its option text_column"
        in text
    )
    assert "train.max_seq_length: no such training argument -> use data.max_length" in text
    assert "sft.yaml:6, fsdp: no such section -> it is a plugin: write it under plugins" in text


def test_functions_are_named_in_a_configuration_as_json():
    plugins = {"formats": {"formatting": write, "loss": None}}
    config = tiny_config(plugins=plugins)
    assert config.plugins["formats"]["formatting"] is write
    assert config.model_dump(mode="json")["plugins"] == {"formats": {"formatting": f"{__name__}:write", "loss": None}}


def test_an_invalid_value_is_reported_once_with_what_is_allowed(tmp_path):
    text = problems_of(write(tmp_path, "model: demo\ndata: {train: a, max_length: 0, eval: 1.5}\n"))
    assert "data.max_length: 0 is out of range: it must be above 0" in text
    assert text.count("data.eval") == 1


def test_missing_sections_are_reported(tmp_path):
    text = problems_of(write(tmp_path, "train: {max_steps: 1}\n"))
    assert "model: no model is given" in text
    assert "data: no data is given" in text


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("model: [1\n", "not valid YAML"),
        ("- a\n", "the file is not a mapping"),
        ("model: a\nmodel: b\n", "the key is set twice"),
        ("model: !!python/object/apply:os.system [true]\n", "not valid YAML"),
    ],
)
def test_an_invalid_file_is_rejected(tmp_path, text, what):
    with pytest.raises(ConfigError, match=what):
        read_yaml(write(tmp_path, text))


def test_overrides_replace_values_of_the_file(tmp_path):
    path = write(
        tmp_path,
        "model: {name: demo, init: random}\ndata: a.jsonl\n"
        "train: {max_steps: 5, seed: 1}\nplugins: {neftune: {alpha: 2}}\n",
    )
    source, choices = gather([str(path), "train.max_steps=9", "data.max_length=64", "plugins.neftune.alpha=3"], [])
    config = Pipeline(config=source, plugins=choices)._resolve()[0]
    assert (config.train["max_steps"], config.train["seed"]) == (9, 1)
    assert (config.data.train, config.data.max_length) == (str(tmp_path / "a.jsonl"), 64)
    assert config.plugins["neftune"]["alpha"] == 3


def test_a_model_without_data_does_not_use_the_embedded_data():
    source, choices = gather([], [], model="demo")
    with pytest.raises(ConfigError, match="data: no data is given"):
        Pipeline(config=source, plugins=choices)._resolve()


def test_command_line_values_keep_text_that_yaml_would_drop():
    assert parse_value("### Answer:") == "### Answer:"
    assert parse_value("[1, 2]") == [1, 2]
    assert parse_value("true") is True
    assert parse_value("12") == 12
    assert parse_value('"a\\nb"') == "a\nb"


def test_options_are_split_at_commas_before_an_option():
    assert split_options("a=1,b=x, y,c=[1,2]") == ["a=1", "b=x, y", "c=[1,2]"]


def test_scientific_notation_becomes_a_float(tmp_path):
    config, _ = resolve(
        read_yaml(write(tmp_path, "model: {name: demo, init: random}\ndata: a.jsonl\ntrain: {learning_rate: 2e-5}\n"))
    )
    assert config.train["learning_rate"] == 2e-5


def test_errors_are_reported_without_importing_torch_or_transformers(tmp_path):
    path = write(
        tmp_path, "model: {name: demo, init: random}\ndata: a.jsonl\ntrain: {lerning_rate: 1, packing: true}\n"
    )
    code = (
        "import sys\nfrom sftkit.cli.options import gather\nfrom sftkit.run.pipeline import Pipeline\n"
        f"source, choices = gather([{str(path)!r}], ['packing'])\n"
        "problems = Pipeline(config=source, plugins=choices).check()\n"
        "assert 'lerning_rate' in str(problems[0]), problems\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_schema_covers_all_sections_training_arguments_and_plugins():
    schema = config_schema()["properties"]
    assert set(schema) == {"model", "data", "train", "run", "evaluate", "plugins"}
    assert schema["train"]["properties"]["learning_rate"]["type"] == ["number", "string", "null"]
    named = schema["plugins"]["anyOf"][0]["properties"]
    assert set(named) == set(discover())
    assert "alpha" in named["neftune"]["anyOf"][0]["properties"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("2h30m", 9000), ("11:30:00", 41400), ("1-12:00:00", 129600), ("1d", 86400)]
)
def test_a_deadline_is_a_number_of_seconds_or_text(text, seconds):
    assert RunSection.model_validate({"max_time": text}).max_time == seconds


def test_problems_of_the_section_run_are_reported(tmp_path):
    values = {"model": "demo", "data": "a.jsonl", "run": {"on_nan": "skip", "max_time": "soon", "graze": 3}}
    problems = "\n".join(map(str, Pipeline(config=values).check()))
    assert "run.max_time" in problems
    assert "did you mean 'grace'?" in problems
    skipping = Pipeline(config={**values, "run": {"on_nan": "skip"}, "train": {"optim": "lomo"}}).check()
    assert any("lomo cannot skip a step" in str(problem) for problem in skipping)


def test_the_pipeline_does_not_change_its_arguments(tmp_path):
    train, data, plugins = {"max_steps": 1}, {"train": "a.jsonl"}, [{"neftune": {"alpha": 1}}]
    Pipeline(model="demo", data=data, plugins=plugins, train=train).check()
    assert (train, data, plugins) == ({"max_steps": 1}, {"train": "a.jsonl"}, [{"neftune": {"alpha": 1}}])


def test_a_missing_data_file_is_an_error_before_weights_are_loaded(tmp_path):
    pipeline = Pipeline(
        model={"name": "demo", "init": "random"},
        data=str(tmp_path / "no.jsonl"),
        train={"output_dir": str(tmp_path / "o")},
    )
    with pytest.raises(DataError, match="no such file or directory"):
        pipeline.run()
