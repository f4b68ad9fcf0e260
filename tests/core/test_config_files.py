"""Several configuration files, variables of the environment, and paths relative to the file."""

from __future__ import annotations

import os
import sys

import jsonschema
import pytest

from sftkit import Pipeline
from sftkit.cli.options import gather
from sftkit.config.source import COMMAND_LINE, ConfigSource, read_yaml
from sftkit.errors import ConfigError, DataError
from sftkit.plugin.resolve import resolve
from sftkit.plugin.schema import config_schema
from sftkit.run.inputs import as_source
from sftkit.user_modules import DirectoryFinder

BASE = """\
model: demo
data: {train: demo, max_length: 64}
train:
  max_steps: 5
  save_total_limit: 3
plugins:
  neftune: {alpha: 2}
  packing: {}
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="sft.yaml"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


def merged(*files):
    return resolve(gather([str(file) for file in files], [])[0])[0]


def problems(*items):
    with pytest.raises(ConfigError) as raised:
        resolve(as_source([*items]))
    return str(raised.value)


def test_later_files_override_earlier_ones(write):
    later = write("model: {dtype: bfloat16}\ndata: other.jsonl\ntrain: {max_steps: 9}\n", "later.yaml")
    config = merged(write(BASE), later)
    assert (config.model.name.endswith("model"), config.model.dtype) == (True, "bfloat16")
    assert (config.data.train, config.data.max_length) == (str(later.parent / "other.jsonl"), 64)
    assert config.train == {"max_steps": 9, "save_total_limit": 3}
    assert as_source([write(BASE), {"data": {"max_length": 9}}, later]).values["data"]["max_length"] == 9


def test_plugins_of_all_files_are_selected(write):
    options = merged(
        write(BASE), write("plugins: {neftune: {alpha: 3}, completion_only: {response_template: x}}\n", "a.yaml")
    ).plugins
    template = options["completion_only"]["response_template"]
    assert (options["neftune"]["alpha"], template, "packing" in options) == (3, "x", True)
    options = merged(write(BASE), write("plugins: [compile, 'neftune:alpha=4']\n", "b.yaml")).plugins
    assert (options["neftune"]["alpha"], "compile" in options, "packing" in options) == (4, True, True)
    assert "packing" not in merged(write(BASE), write("plugins: {packing: false}\n", "c.yaml")).plugins


def test_a_plugin_of_the_file_is_dropped_on_the_command_line(write):
    source, choices = gather([str(write(BASE)), "plugins.packing=false", "plugins.neftune.alpha=7"], [])
    plugins = Pipeline(config=source, plugins=choices).stages().config.plugins
    assert ("packing" in plugins, plugins["neftune"]["alpha"]) == (False, 7)


def test_problems_name_the_file_that_set_the_value(write):
    text = problems(
        write(BASE),
        write("train: {max_steps: many}\nplugins: {neftune: {alhpa: 1}}\n", "a.yaml"),
        write("data: {max_lenght: 1}\n", "b.yaml"),
    )
    assert "a.yaml:1, train.max_steps: 'many' is of the wrong type" in text
    assert "a.yaml:2, plugins.neftune.alhpa: no such option" in text
    assert "b.yaml:1, data.max_lenght: no such key" in text


def test_null_stands_for_the_default_unless_it_is_a_value(write):
    nothing = "model: {dtype: null}\ndata: {max_length: null}\nplugins: {neftune: {alpha: null}}\n"
    config = merged(write(BASE), write(nothing + "train: {max_steps: null, save_total_limit: null}\n", "a.yaml"))
    assert (config.model.dtype, config.data.max_length, config.plugins["neftune"]["alpha"]) == ("float32", 1024, 5.0)
    assert config.train == {"save_total_limit": None}
    sections = {"model": {"name": "demo", "dtype": None}, "data": {"train": "demo", "max_length": None}}
    full = {**sections, "train": {"max_steps": None}, "plugins": {"neftune": {"alpha": None}}}
    assert not list(jsonschema.Draft202012Validator(config_schema()).iter_errors(full))


def test_a_variable_has_the_type_of_what_is_written_there(write, monkeypatch):
    monkeypatch.setenv("STEPS", "7")
    monkeypatch.setenv("NAME", "x")
    text = "a: ${STEPS}\nb: '${STEPS}'\nc: {d: ${RATE:-0.5}, e: [${STEPS}, run-${NAME}-${STEPS}]}\nf: ${NO:-}\n"
    read = read_yaml(write(text)).values
    assert read == {"a": 7, "b": "7", "c": {"d": 0.5, "e": [7, "run-x-7"]}, "f": None}


def test_an_escaped_reference_and_a_key_are_left_alone(write, monkeypatch):
    monkeypatch.setenv("NAME", "x")
    read = read_yaml(write("${NAME}: $${NAME}\n# ${UNSET}\nb: 'cost $5, $${ and ${NAME}'\n")).values
    assert read == {"${NAME}": "${NAME}", "b": "cost $5, ${ and x"}


def test_variables_that_are_not_set_are_reported_with_their_lines(write, monkeypatch):
    monkeypatch.delenv("NO_SUCH", raising=False)
    with pytest.raises(ConfigError) as raised:
        read_yaml(write("a:\n  b: ${NO_SUCH}\n  c: [x, '${NO_SUCH}']\nd: ${ x\n"))
    text = str(raised.value)
    assert (
        "sft.yaml:2, a.b: the environment variable NO_SUCH is not set -> set it, or write ${NO_SUCH:-default}" in text
    )
    assert "sft.yaml:3, a.c.1: the environment variable NO_SUCH" in text
    assert "sft.yaml:4, d: `${` does not begin the name" in text


def test_a_variable_cannot_add_structure(write, monkeypatch):
    monkeypatch.setenv("EVIL", "1\nmodel: {trust_remote_code: true}")
    assert read_yaml(write("a: ${EVIL}\n")).values == {"a": os.environ["EVIL"]}


def test_paths_in_a_file_are_relative_to_the_file(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (
        "data/a.jsonl",
        "configs/b.jsonl",
        "configs/owner/name/config.json",
        "configs/t.jinja",
        "configs/ds.json",
    ):
        write("", name)
    write(
        "model: {name: owner/name, tokenizer: gpt2, init: random}\n"
        "data: {mix: {../data/a.jsonl: 1, b.jsonl: 2}, eval: {one: '*.jsonl', two: org/data}}\n"
        "train: {accelerator_config: ds.json, output_dir: runs/a}\nplugins: {chatml: {template: t.jinja}}\n",
        "configs/sft.yaml",
    )
    config, _ = resolve(read_yaml(tmp_path / "configs" / "sft.yaml"), trains=False)
    assert (config.model.name, config.model.tokenizer) == (str(tmp_path / "configs/owner/name"), "gpt2")
    assert config.data.mix == {str(tmp_path / "data/a.jsonl"): 1, str(tmp_path / "configs/b.jsonl"): 2}
    assert config.data.eval == {"one": str(tmp_path / "configs/*.jsonl"), "two": "org/data"}
    assert config.train == {"accelerator_config": str(tmp_path / "configs/ds.json"), "output_dir": "runs/a"}
    assert config.plugins["chatml"]["template"] == str(tmp_path / "configs/t.jinja")


def test_paths_of_the_command_line_are_relative_to_the_working_directory(write, tmp_path):
    source = read_yaml(write("model: demo\ndata: [a.jsonl, b.jsonl]\n", "configs/sft.yaml"))
    assert resolve(source)[0].data.train == [str(tmp_path / "configs" / name) for name in ("a.jsonl", "b.jsonl")]
    source.set(("data", "train"), ["c.jsonl"], COMMAND_LINE)
    assert resolve(source)[0].data.train == ["c.jsonl"]


def test_a_path_that_is_only_in_the_working_directory_is_an_error(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("{}", "train.jsonl")
    write("", "base/model/config.json")
    text = problems(write("model: base/model\ndata:\n  train: train.jsonl\n", "configs/sft.yaml"))
    assert f"configs/sft.yaml:3, data.train: there is no {tmp_path}/configs/train.jsonl: paths in a file" in text
    assert f"-> write ../train.jsonl for {tmp_path}/train.jsonl" in text
    assert "configs/sft.yaml:1, model.name: there is no" in text
    assert "write ../base/model for" in text


def test_a_missing_file_is_named_with_its_whole_path(write, tmp_path):
    pipeline = Pipeline(config=write("model: demo\ndata: ./no/train.jsonl\n", "configs/sft.yaml"))
    with pytest.raises(DataError, match=f"no such file or directory: {tmp_path}/configs/no/train.jsonl"):
        pipeline.prepare()


def test_a_module_beside_the_file_is_found(write, tmp_path, monkeypatch):
    others = [finder for finder in sys.meta_path if not isinstance(finder, DirectoryFinder)]  # those of other tests
    monkeypatch.setattr(sys, "meta_path", others)
    write("def format_row(row):\n    return 'text'\n", "configs/beside_the_file.py")
    text = "model: demo\ndata: demo\nplugins: {formats: {formatting: 'beside_the_file:format_row'}}\n"
    written = Pipeline(config=write(text, "configs/sft.yaml")).written()
    assert f"modules:\n  - {tmp_path}/configs\n" in written.text
    again = write(written.text, "elsewhere/config.yaml")
    assert resolve(read_yaml(again))[0].plugins["formats"]["formatting"] == "beside_the_file:format_row"
    write("", "other/beside_the_file.py")
    assert "another module beside_the_file was imported before" in problems(write(text, "other/sft.yaml"))


def test_a_mapping_merges_into_the_short_form():
    source = ConfigSource({"model": "a", "data": ["x"]})
    source.merge(ConfigSource({"model": {"dtype": "auto"}, "data": {"max_length": 3}}))
    assert source.values == {"model": {"name": "a", "dtype": "auto"}, "data": {"train": ["x"], "max_length": 3}}


def test_the_schema_accepts_references_in_place_of_values():
    config = {"model": {"name": "demo", "dtype": "${DTYPE}"}, "data": {"train": "demo", "max_length": "${LENGTH:-9}"}}
    config |= {"train": {"bf16": "${BF16}", "eval_strategy": "${WHEN}", "max_steps": "${N}"}}
    assert not list(jsonschema.Draft202012Validator(config_schema()).iter_errors(config))
