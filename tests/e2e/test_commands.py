"""The command line as a user meets it: what it prints, its exit codes, and what a run leaves behind."""

from __future__ import annotations

import json
from importlib import metadata

import jsonschema
import pytest
import yaml
from safetensors.torch import load_file

import sftkit
from sftkit import DISTRIBUTION, demo

HEAVY = {"torch", "transformers", "datasets", "peft", "numpy"}
#: The embedded model and data, as little of them as trains.
SMALL = ("-p", "no:samples", "data.eval=null", "evaluate=null", "train.eval_on_start=false", "data.max_length=64")
BAD = """\
modle: x
model: {name: demo, init: random}
data: {train: demo, max_lenght: 64}
train:
  lerning_rate: 1
  max_steps: many
plugins:
  neftune:
    alhpa: 3
  pakcing: {}
"""


@pytest.fixture(scope="module")
def bad_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("bad") / "bad.yaml"
    path.write_text(BAD)
    return path


@pytest.fixture(scope="module")
def first_run(cli, tmp_path_factory):
    """A run of two steps with a checkpoint at its end."""
    directory = tmp_path_factory.mktemp("runs") / "first"
    options = ("train.max_steps=2", "train.logging_steps=1", "train.save_strategy=steps", "train.save_steps=2")
    cli("run", *SMALL, "-p", "packing", "-o", directory, *options, cwd=directory.parent)
    return directory


def manifest(directory):
    return json.loads((directory / "manifest.json").read_text())


def logged(directory):
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


def modules_loaded(stderr):
    """The modules that Python tells of under PYTHONPROFILEIMPORTTIME."""
    return {line.rpartition("|")[2].strip() for line in stderr.splitlines() if line.startswith("import time:")}


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["plugins"], ["plugins", "peft"], ["schema"]])
def test_light_commands_load_no_heavy_library(fresh_cli, tmp_path, arguments):
    done = fresh_cli(*arguments, cwd=tmp_path, env={"PYTHONPROFILEIMPORTTIME": "1"})
    loaded = modules_loaded(done.stderr)
    assert "sftkit.cli" in loaded
    assert not HEAVY & loaded


def test_every_problem_of_a_file_is_reported_at_once_with_its_line(fresh_cli, bad_file):
    done = fresh_cli("run", bad_file.name, cwd=bad_file.parent, code=2, env={"PYTHONPROFILEIMPORTTIME": "1"})
    output = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert output == [
        "error: bad.yaml:1, modle: no such section -> did you mean 'model'?",
        "error: bad.yaml:3, data.max_lenght: no such key -> did you mean 'max_length'?",
        "error: bad.yaml:5, train.lerning_rate: no such training argument -> did you mean 'learning_rate'?",
        "error: bad.yaml:6, train.max_steps: 'many' is of the wrong type -> use a whole number",
        "error: bad.yaml:9, plugins.neftune.alhpa: no such option -> did you mean 'alpha'?",
        "error: bad.yaml:10, plugins.pakcing: no plugin is named 'pakcing' -> did you mean 'packing'?",
    ]
    assert not HEAVY & modules_loaded(done.stderr)


def test_problems_of_the_command_line_are_reported_with_a_fix(in_process):
    code, output = in_process("run", "-p", "neftun", "-p", "neftune:alhpa=3", "train.max_stesp=1", "trian.seed=1")
    assert code == 2
    assert "no plugin is named 'neftun' -> did you mean 'neftune'?" in output
    assert "plugin neftune, option alhpa: no such option -> did you mean 'alpha'?" in output
    assert "train.max_stesp: no such training argument -> did you mean 'max_steps'?" in output
    assert "trian: no such section -> did you mean 'train'?" in output


def test_a_run_leaves_a_model_its_tokenizer_a_log_and_a_manifest(first_run):
    names = {path.name for path in first_run.iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json"} <= names
    assert {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= names
    assert {"log.jsonl", "manifest.json", "checkpoint-2"} <= names
    assert not [name for name in names if name.endswith((".partial", ".bin"))]


def test_the_manifest_records_configuration_data_versions_and_metrics(first_run):
    output = manifest(first_run)
    assert output["status"] == "done"
    assert output["config"]["train"]["max_steps"] == 2
    assert output["plugins"]["packing"] == {"distribution": DISTRIBUTION, "version": sftkit.__version__}
    assert output["data"]["train"]["rows read"] == len(demo.TRAIN.read_text().splitlines())
    assert output["versions"]["torch"] == metadata.version("torch")
    assert output["metrics"]["train_loss"] == pytest.approx(sum(row["loss"] for row in logged(first_run)[:2]) / 2)


def test_an_existing_run_is_neither_replaced_nor_resumed_by_default(cli, first_run):
    before = manifest(first_run)
    done = cli("run", *SMALL, "-o", first_run, "train.max_steps=1", cwd=first_run.parent, code=2)
    fix = "continue it with --resume, replace it with --overwrite, or choose another --output DIR"
    assert done.stderr == f"error: {first_run}: the output directory holds a run already -> {fix}\n"
    assert manifest(first_run) == before


def test_a_directory_without_a_run_is_never_replaced(in_process, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    code, output = in_process("run", *SMALL, "-o", tmp_path, "--overwrite", "train.max_steps=1")
    assert code == 2
    assert "the output directory is not empty, and does not hold a run" in output
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_overwrite_replaces_a_run(in_process, tmp_path):
    rest = ("-o", tmp_path / "run", "train.max_steps=1", "train.logging_steps=1")
    assert in_process("run", *SMALL, "-p", "packing", *rest)[0] == 0
    assert in_process("run", *SMALL, *rest, "--overwrite")[0] == 0
    assert "packing" not in manifest(tmp_path / "run")["plugins"]
    assert [row["step"] for row in logged(tmp_path / "run") if "loss" in row] == [1]


def test_a_resumed_run_ends_with_the_same_weights(in_process, tmp_path):
    common = (*SMALL, "train.lr_scheduler_type=constant", "train.warmup_steps=0", "train.logging_steps=1")
    saving = ("train.save_strategy=steps", "train.save_steps=2")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert in_process("run", *common, "-o", whole, "train.max_steps=4")[0] == 0
    assert in_process("run", *common, *saving, "-o", parts, "train.max_steps=2")[0] == 0
    assert in_process("run", *common, *saving, "-o", parts, "train.max_steps=4", "--resume")[0] == 0
    assert [row["step"] for row in logged(parts) if "loss" in row] == [1, 2, 3, 4]
    expected, got = load_file(whole / "model.safetensors"), load_file(parts / "model.safetensors")
    assert expected.keys() == got.keys()
    assert all(expected[name].equal(got[name]) for name in expected)


def test_a_run_is_not_resumed_with_other_data(in_process, first_run):
    code, output = in_process("run", *SMALL, "-p", "packing", "-o", first_run, "--resume", "data.max_length=32")
    assert code == 2
    assert "data.max_length: changed since the run began: 64 -> 32 -> set it back" in output


def test_there_must_be_a_run_to_resume(in_process, tmp_path):
    code, output = in_process("run", *SMALL, "-o", tmp_path / "none", "--resume")
    assert code == 2
    assert "there is no run to resume" in output


def test_a_slot_that_nothing_fills_is_an_error(in_process, tmp_path):
    code, output = in_process("run", *SMALL, "-p", "no:pad", "-o", tmp_path / "run", "train.max_steps=1")
    assert code == 2
    assert "no selected plugin makes padded batches -> drop no:pad" in output


@pytest.mark.slow
def test_plugins_in_a_mapping_a_list_and_on_the_command_line_are_equal(in_process, tmp_path):
    config = {
        "model": {"name": "demo", "init": "random"},
        "data": {"train": "demo", "max_length": 64},
        "train": {"max_steps": 2, "learning_rate": 1e-3, "seed": 3},
    }
    files = {
        "mapping": {**config, "plugins": {"packing": None, "neftune": {"alpha": 7}}},
        "list": {**config, "plugins": ["packing", {"neftune": {"alpha": 7}}]},
        "names": {**config, "plugins": ["packing", "neftune:alpha=7"]},
        "flags": config,
    }
    for name, values in files.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        flags = ("-p", "packing", "-p", "neftune:alpha=7") if name == "flags" else ()
        assert in_process("run", path, *flags, "-o", tmp_path / name)[0] == 0
    weights = [load_file(tmp_path / name / "model.safetensors") for name in files]
    plugins = [list(manifest(tmp_path / name)["config"]["plugins"].items()) for name in files]
    assert all(other == plugins[0] for other in plugins[1:])
    assert all(other[name].equal(tensor) for name, tensor in weights[0].items() for other in weights[1:])


def test_a_plugin_in_the_file_is_dropped_from_the_command_line(in_process, tmp_path):
    path = tmp_path / "sft.yaml"
    path.write_text("model: {name: demo, init: random}\ndata: demo\nplugins: {packing: {}}\n")
    assert in_process("run", path, "-p", "no:packing", "-o", tmp_path / "run", "train.max_steps=1")[0] == 0
    assert "packing" not in manifest(tmp_path / "run")["plugins"]


def test_plugins_as_json_lists_every_installed_one(cli, tmp_path):
    output = json.loads(cli("plugins", "--json", cwd=tmp_path).stdout)["plugins"]
    builtin = {point.name for point in metadata.distribution(DISTRIBUTION).entry_points if point.group == "sftkit"}
    assert builtin <= {item["name"] for item in output}
    packing = next(item for item in output if item["name"] == "packing")
    assert (packing["distribution"], packing["status"]) == (DISTRIBUTION, "ready")
    assert "make_packer" in packing["hooks"]
    assert packing["summary"]


def test_one_plugin_as_json_has_its_options(cli, tmp_path):
    output = json.loads(cli("plugins", "neftune", "--json", cwd=tmp_path).stdout)
    alpha = next(option for option in output["options"] if option["name"] == "alpha")
    assert (alpha["type"], alpha["default"]) == ("float above 0", "5.0")
    assert alpha["description"]


def test_plugins_finds_a_plugin_in_the_working_directory(fresh_cli, tmp_path):
    source = '''
from sftkit.api import Plugin, dataclass


@dataclass(frozen=True, kw_only=True)
class MyNoise(Plugin):
    """Adds noise."""

    loudness: float = 0.5
'''
    (tmp_path / "my_noise.py").write_text(source)
    output = json.loads(fresh_cli("plugins", "my_noise:MyNoise", "--json", cwd=tmp_path).stdout)
    assert output["summary"] == "Adds noise."
    assert [option["name"] for option in output["options"]] == ["loudness"]


def test_an_unknown_plugin_is_an_error_with_the_nearest_name(cli, tmp_path):
    done = cli("plugins", "pakcing", cwd=tmp_path, code=2)
    assert "no plugin is named 'pakcing' -> did you mean 'packing'?" in done.stderr


def test_the_version_is_that_of_the_distribution(cli, tmp_path):
    assert cli("--version", cwd=tmp_path).stdout.strip() == sftkit.__version__


def accepts(schema, value):
    """Whether a JSON schema accepts a value."""
    return jsonschema.Draft202012Validator(schema).is_valid(value)


def test_the_schema_accepts_the_embedded_run_and_refuses_misspelt_keys(cli, tmp_path):
    schema = json.loads(cli("schema", cwd=tmp_path).stdout)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    config = yaml.safe_load(demo.CONFIG.read_text())
    assert accepts(schema, config)
    assert not accepts(schema, {**config, "modle": "x"})
    assert not accepts(schema, {**config, "train": {"lerning_rate": 1.0}})
    assert not accepts(schema, {**config, "plugins": {"pakcing": {}}})
    assert not accepts(schema, {**config, "plugins": {"neftune": {"alpha": "much"}}})
