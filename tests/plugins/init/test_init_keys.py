"""No key of a translated file is lost: each ends up in exactly one list."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings, strategies as st

from sftkit import SftkitError
from sftkit_commands.init import axolotl, hf, llamafactory, trl
from sftkit_commands.init.axolotl_dataset import DATASET_RULES
from sftkit_commands.init.axolotl_run import translate as from_axolotl
from sftkit_commands.init.llamafactory_run import translate as from_llamafactory
from sftkit_commands.init.local import Places
from sftkit_commands.init.nested import flatten
from sftkit_commands.init.render import as_dict, yaml_of
from sftkit_commands.init.translation import Translation
from sftkit_commands.init.trl_command import read_command
from sftkit_commands.init.trl_python import read_script
from sftkit_commands.init.trl_run import translate as from_trl

HERE = Path(__file__).parent
#: Keys whose values are numbers in each of the tools; other keys get any of the values below.
NUMBERS = (
    *("steps", "epochs", "epoch", "size", "rate", "ratio", "decay", "len", "length", "_r", "rank", "alpha", "beta1"),
    *("beta2", "epsilon", "norm", "limit", "seed", "patience", "workers", "factor", "dropout", "samples", "tokens"),
    *("bit", "bits", "iter", "coef", "timeout", "cap_mb", "accumulation_steps", "seq_length", "smoothing_factor"),
)
MAPPINGS = (
    "kwargs",
    "config",
    "pattern",
    "overrides_of_model_config",
    "overrides_of_model_kwargs",
    "bnb_config_kwargs",
)
VALUES = st.sampled_from([None, True, False, 0, 1, 3, 0.5, "", "text", "auto", "no", "steps", "q_proj,v_proj"])


def examples(tool):
    """The values that the configurations of the tests have, by key."""
    found: dict = {}
    for path in sorted((HERE / tool).iterdir()):
        values = json.loads(path.read_text()) if path.suffix == ".json" else {}
        if path.suffix in (".yaml", ".yml"):
            values = yaml.safe_load(path.read_text())
        elif path.suffix == ".sh":
            values = read_command(path.read_text(), Places(path.parent, path.parent))
        elif path.suffix == ".py":
            values = read_script(path.read_text()).values
        for key, value in {} if path.name == "dataset_info.json" else values.items():
            found.setdefault(key, []).append(value)
    return found


def configurations(rules, tool):
    """Random subsets of all keys that a tool has, and of those it does not have."""
    known = examples(tool)

    def value(key):
        if key in known:
            return st.sampled_from(known[key])
        if key.endswith(MAPPINGS):
            return st.sampled_from([None, {}, {"a": 1}])
        if key.endswith(NUMBERS):
            return st.sampled_from([None, 0, 1, 2, 64, 0.25])
        return VALUES

    names = sorted({*rules, *known, "no_such_key", "other.unknown"})
    keys = st.lists(st.sampled_from(names), max_size=60, unique=True)
    return keys.flatmap(lambda chosen: st.fixed_dictionaries({key: value(key) for key in chosen}))


TOOLS = {
    "axolotl": (axolotl.RULES, from_axolotl),
    "llamafactory": (llamafactory.RULES, from_llamafactory),
    "trl": (trl.RULES, from_trl),
}


@pytest.mark.parametrize("tool", TOOLS)
def test_random_subsets_of_keys_never_lose_a_key(tool, workdir):
    rules, translate = TOOLS[tool]
    check = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    check(given(configurations(rules, tool))(lambda values: accounted(translate, values, workdir)))()


@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
def test_many_random_subsets_of_keys_never_lose_a_key(tool, workdir):
    rules, translate = TOOLS[tool]
    if tool != "axolotl":
        rules = {**llamafactory.rules(), **rules}
    check = settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
    check(given(configurations(rules, tool))(lambda values: accounted(translate, values, workdir)))()


def accounted(translate, values, workdir):
    """Each key is in one list, unknown ones in theirs, and the file can be read."""
    try:
        t = translate(values, Places(workdir, workdir))
    except (SftkitError, ValueError, TypeError, AttributeError):  # a value of a type that the key does not take
        return
    assert list(t.entries) == list(t.given)
    assert {key.partition("[")[0].partition(".")[0] for key in t.given} >= {
        str(key).partition(".")[0] for key in values
    }
    lists = as_dict(t)
    listed = [item["key"] for kind in ("translated", "always", "lost", "unknown") for item in lists[kind]]
    assert sorted(listed) == sorted(t.given)
    if "no_such_key" in values:
        assert t.entries["no_such_key"].kind == "unknown"
    assert (yaml.safe_load(yaml_of(t, "x")) or {}) == {name: part for name, part in t.values.items() if part}


@pytest.mark.parametrize("key", sorted(DATASET_RULES))
def test_each_key_of_a_data_set_of_axolotl_is_accounted_for(key, workdir):
    name, _, inner = key.partition(".")
    for value in (None, True, "text", "messages"):
        entry = {"path": "chat.jsonl", "type": "chat_template", name: {inner: value} if inner else value}
        accounted(from_axolotl, {"base_model": "model", "datasets": [entry], "test_datasets": [entry]}, workdir)


@pytest.mark.parametrize("key", sorted(llamafactory.INFO_RULES))
def test_each_key_of_a_description_of_data_is_accounted_for(key, workdir):
    outer, _, inner = key.partition(".")
    for value in (None, True, "text", "chat.jsonl"):
        description = {"file_name": "chat.jsonl", "formatting": "sharegpt", outer: {inner: value} if inner else value}
        (workdir / "dataset_info.json").write_text(
            json.dumps({"one": description, "two": {"file_name": "pairs.jsonl"}})
        )
        values = {"stage": "sft", "dataset": "one,two", "eval_dataset": "one", "dataset_dir": "."}
        accounted(from_llamafactory, values, workdir)


def test_nested_keys_have_paths_and_lists_of_values_stay_whole():
    values = {"a": {"b": 1}, "list": [{"x": {"y": 2}}, {"z": [1]}], "plugins": ["p"], "empty": {}}
    assert flatten(values, ("list", "plugins", "empty")) == {
        "a": {"b": 1},
        "list[0].x": {"y": 2},
        "list[1].z": [1],
        "plugins[0]": "p",
        "empty": {},
    }


@pytest.mark.parametrize(("save", "kept"), [(50, True), (100, False)])
def test_early_stopping_needs_a_checkpoint_at_each_evaluation_and_no_other(save, kept):
    t = Translation("Axolotl", {"early_stopping_patience": 3})
    t.values = {"data": {"eval": 0.1}, "train": {"eval_strategy": "steps", "eval_steps": 50, "save_steps": save}}
    hf.early_stopping(t, "early_stopping_patience")
    hf.prune(t)
    assert (t.value("evaluate.patience") == 3, [entry.key for entry in t.of_kind("lost")] == []) == (kept, kept)
