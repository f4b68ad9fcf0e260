"""Whatever a configuration, a plugin's options or a data file contain, the outcome is a run or an error of sftkit."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings, strategies as st

from sftkit import Pipeline
from sftkit.config.models import DataSection, ModelSection
from sftkit.config.train_fields import allowed_fields
from sftkit.errors import SftkitError
from sftkit.plugin.base import option_names
from sftkit.plugin.registry import discover, load_class

LAUGHS = "\n".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9 if n else ['x'])}]" for n in range(12))
quick = settings(
    max_examples=10, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
thorough = settings(quick, max_examples=500)
#: What YAML and JSON may hold, and values that are special to paths, patterns, numbers and encodings.
SPECIAL = ["demo", "~", "x://y", "[", "*", "a\x00b", "\ud800", "/", "..", "1e5", "auto", "é", 10**400, math.nan, -1]
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(SPECIAL)
trees = st.recursive(
    leaves | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(leaves, inner, max_size=3),
    max_leaves=8,
)
sections = st.dictionaries(st.sampled_from(["model", "data", "train", "plugins"]), trees)
values = st.recursive(
    leaves.filter(lambda value: value != "\ud800"),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "text", "", "é"]), inner, max_size=3)
    ),
    max_leaves=6,
)
GOOD = [
    {"prompt": "a", "completion": "b"},
    {"text": "abc"},
    {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
    {"instruction": "a", "input": "", "output": "c"},
]
columns = st.sampled_from([*{name for row in GOOD for name in row}, "tools", "images", "label", "input_ids", "labels"])
rows = st.lists(
    st.sampled_from(GOOD)
    | st.dictionaries(columns | st.text(max_size=3), values, max_size=4)
    | st.tuples(st.sampled_from(GOOD), st.dictionaries(columns, values, max_size=2)).map(
        lambda pair: pair[0] | pair[1]
    ),
    min_size=1,
    max_size=4,
)
kinds = st.sampled_from(["json", "jsonl", "csv", "tsv", "txt", "parquet", "arrow", "jsonl.gz", "json.zst", "csv.xz"])
contents = st.binary(max_size=80) | st.text(alphabet='{}[]",:\\ud8001eE+-. \n\r\t\x00a;', max_size=60).map(str.encode)


@functools.cache
def places() -> list[tuple[str, ...]]:
    """The key of each option of the core and of the built-in plugins."""
    known = discover()
    built_in = [name for name, points in known.items() if points[0].value.startswith("sftkit_plugins")]
    options = {name: option_names(load_class(name, known)) for name in built_in}
    return [
        *(("model", name) for name in ModelSection.model_fields),
        *(("data", name) for name in DataSection.model_fields),
        *(("train", name) for name in allowed_fields()),
        *(("plugins", name, option) for name, names in options.items() for option in names),
        *(("plugins", name) for name in options),
    ]


def check(config: Any) -> list[str]:
    """The problems of a configuration; any other exception is a fault."""
    try:
        return [str(problem) for problem in Pipeline(config=config).check()]
    except SftkitError as error:
        return [str(problem) for problem in error.problems]


def prepare(source: Any, **data: Any) -> str:
    """The error of a data source, or nothing; any other exception is a fault."""
    config = {"data": {"cache": False, **data}}
    train = {"max_steps": 1, "use_cpu": True}
    try:
        Pipeline("demo", source, plugins=["chatml", "no:checks"], config=config, train=train).prepare()
    except SftkitError as error:
        return str(error)
    return ""


def changed(changes: list[tuple[tuple[str, ...], Any]]) -> dict[str, Any]:
    """A configuration that works, with some values replaced."""
    config: dict[str, Any] = {"model": {"name": "demo"}, "data": {"train": "demo"}, "train": {"use_cpu": True}}
    for key, value in changes:
        section: dict[str, Any] = config
        for part in key[:-1]:
            section[part] = inner = section[part] if isinstance(section.get(part), dict) else {}
            section = inner
        section[key[-1]] = value
    return config


def any_configuration(tree: Any, changes: list[tuple[tuple[str, ...], Any]], text: bytes, path: Path) -> None:
    check(changed(changes))
    path.write_bytes(text)
    check(path)
    try:
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    except (UnicodeEncodeError, TypeError):  # not all of these trees are YAML
        return
    check(path)


mutations = st.lists(st.tuples(st.deferred(lambda: st.sampled_from(places())), trees), min_size=1, max_size=2)
yaml_texts = st.binary(max_size=60) | st.text(alphabet="-: []{}&*a!|>%@'\"\n\t#?,<=.0129~", max_size=40).map(str.encode)


@quick
@given(trees | sections, mutations, yaml_texts)
def test_any_configuration_is_checked_without_a_traceback(tmp_path_factory, tree, changes, text):
    any_configuration(tree, changes, text, tmp_path_factory.getbasetemp() / "any.yaml")


@pytest.mark.slow
@thorough
@given(trees | sections, mutations, yaml_texts)
def test_many_configurations_are_checked_without_a_traceback(tmp_path_factory, tree, changes, text):
    any_configuration(tree, changes, text, tmp_path_factory.getbasetemp() / "many.yaml")


def any_data(some: list[dict[str, Any]], skip: bool, kind: str, content: bytes, directory: Path) -> None:
    data = {"on_bad_row": "skip"} if skip else {}
    prepare(some, **data)
    path = directory / "fuzz.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
    prepare(path, **data)
    path = directory / f"fuzz.{kind}"
    path.write_bytes(content)
    prepare(path, **data)


@settings(quick, max_examples=5)
@given(rows, st.booleans(), kinds, contents)
def test_any_data_is_prepared_without_a_traceback(tmp_path_factory, some, skip, kind, content):
    any_data(some, skip, kind, content, tmp_path_factory.getbasetemp())


@pytest.mark.slow
@settings(thorough, max_examples=200)
@given(rows, st.booleans(), kinds, contents)
def test_much_data_is_prepared_without_a_traceback(tmp_path_factory, some, skip, kind, content):
    any_data(some, skip, kind, content, tmp_path_factory.getbasetemp())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: 2020-13-45", "not valid YAML: month must be in 1..12"),
        ("model: " + "[" * 900 + "]" * 900, "the values are nested too deeply"),
        ("data: &a [*a]", "odd.yaml:1: the value contains itself"),
        (LAUGHS, "the aliases stand for 75,020,345,639 values"),
        ("3: x", "3: no such section"),
        ("model: demo\ndata: demo\nplugins: {packing: {null: 1}}", "option None: no such option"),
        ("train: {3: x, false: y}", "train.3: no such training argument"),
    ],
)  # fmt: skip
def test_odd_yaml_is_an_error(text, message, tmp_path):
    path = tmp_path / "odd.yaml"
    path.write_text(text, encoding="utf-8")
    assert message in "\n".join(check(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("deep.jsonl", '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}\n", "deep.jsonl:1: not valid JSON"),
        ("deep.json", "[" * 100_000, "deep.json:1: not valid JSON: maximum recursion depth"),
        ("digits.json", '[\n{"text": ' + "9" * 6000 + "}]", "digits.json:1: not valid JSON: Exceeds the limit"),
        ("nul.jsonl", '{"text": "a", "b\\u0000c": 1}\n', r"the column 'b\x00c' has a NUL character in its name"),
        ("returns.csv", "\rd.", "returns.csv:1: not valid CSV"),
    ],
)
def test_odd_data_is_an_error(name, content, message, tmp_path):
    (tmp_path / name).write_text(content, encoding="utf-8", newline="")
    assert message in prepare(tmp_path / name)
