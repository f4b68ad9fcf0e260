"""Every field of TrainingArguments is allowed, or refused with a reason; no right-typed value fails late."""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from sftkit.config.train_fields import DEFAULTS, MOVED, REFUSED, allowed_fields, training_fields
from sftkit.errors import ConfigError, DataError
from sftkit.run.pipeline import Pipeline
from sftkit.testing import tiny_model, tiny_tokenizer

PAGE = Path(__file__).parents[3] / "docs" / "training-arguments.md"
CHEAP = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
NUMBERS = (-5, -1, 0, 1, 2, 7, 10**9, 10**30)
TEXTS = (
    "",
    "none",
    "loss",
    "eval_loss",
    "a=1",
    "a=1,b",
    '{"a": 1}',
    "{bad",
    "/nowhere.json",
    "gloo",
    "all",
    "full_shard",
)
MAPPINGS: tuple[dict[str, Any], ...] = (
    {}, {"a": 1}, {"num_cycles": 2}, {"use_reentrant": False}, {"split_batches": True},
    {"gradient_accumulation_kwargs": {"num_steps": 2}}, {"gradient_accumulation_kwargs": {"a": 1}},
)  # fmt: skip


def page() -> dict[str, tuple[str, str]]:
    """Field, and its treatment and what is tried, as the page has them."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.+) \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {field: (treatment, tried) for field, treatment, tried in rows}


def test_the_page_has_every_field_and_says_how_it_is_treated():
    described = page()
    for name in training_fields():
        treatment = "refused" if name in REFUSED or name in MOVED else "sftkit" if name in DEFAULTS else "allowed"
        assert described.get(name, ("missing",))[0] == treatment, name
    assert {name for name in described if name not in training_fields()} <= {
        "warmup_ratio", "logging_dir", "activation_checkpointing", "activation_checkpointing_kwargs",
        "dataloader_in_order", "dataloader_multiprocessing_context",
    }  # fmt: skip


def test_every_refused_field_has_a_reason():
    assert all(fix.startswith(("remove it", "use ", "set ")) for fix in [*REFUSED.values(), *MOVED.values()])


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Values of a type, with those at the edges of what is usual."""
    members = typing.get_args(annotation)
    if typing.get_origin(annotation) is Literal:
        return st.sampled_from(members)
    if typing.get_origin(annotation) is list:
        return st.lists(values(members[0]), max_size=2)
    if typing.get_origin(annotation) is dict or annotation is dict:
        return st.sampled_from(MAPPINGS)
    if members:
        return st.one_of(*map(values, members))
    known: dict[Any, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: st.sampled_from(NUMBERS) | st.integers(),
        float: st.sampled_from(NUMBERS) | st.floats(),
        str: st.sampled_from(TEXTS) | st.text(max_size=8),
        type(None): st.none(),
    }
    return known[annotation]


@st.composite
def sections(draw: st.DrawFn) -> dict[str, Any]:
    """Up to four fields of the section ``train``; compiling takes too long."""
    names = [name for name in allowed_fields() if name != "output_dir" and not name.startswith("torch_compile")]
    chosen = draw(st.lists(st.sampled_from(names), max_size=4, unique=True))
    return {name: draw(values(allowed_fields()[name].annotation)) for name in chosen}


SETS = st.sampled_from([None, "nowhere.jsonl", {"a": "nowhere.jsonl", "b": "nowhere.jsonl"}])


def unread(tmp_path, train, held_out):
    """A run whose data does not exist: reading it is a DataError."""
    train = {"use_cpu": True, **train, "output_dir": str(tmp_path / "run")}
    return Pipeline(model="demo", data="nowhere.jsonl", eval=held_out, train=train)


@settings(CHEAP, max_examples=40)
@given(train=sections(), held_out=SETS)
def test_no_right_typed_value_is_more_than_a_problem_with_a_place_and_a_fix(tmp_path, train, held_out):
    for problem in unread(tmp_path, train, held_out).check():
        assert problem.what
        assert problem.where
        assert problem.fix


@settings(CHEAP, max_examples=25)
@given(train=sections(), held_out=SETS)
def test_check_and_run_refuse_the_same_before_data_is_read(tmp_path, train, held_out):
    problems = unread(tmp_path, train, held_out).check()
    with pytest.raises(ConfigError if problems else DataError) as raised:
        unread(tmp_path, train, held_out).run()
    if problems:
        assert raised.value.problems == problems


@pytest.mark.slow
@settings(CHEAP, max_examples=60)
@given(train=sections(), held_out=st.booleans())
def test_what_check_accepts_trains(tmp_path_factory, train, held_out):
    rows = [{"prompt": "### Question: ", "completion": "Paris is " * (1 + number % 4)} for number in range(4)]
    train = {"use_cpu": True, "save_strategy": "no", **train}
    if train.get("max_steps", -1) != 0:
        train["max_steps"] = 1
    train["dataloader_num_workers"] = min(train.get("dataloader_num_workers", 0), 1)

    def run():
        train["output_dir"] = str(tmp_path_factory.mktemp("run") / "new")
        sets = [{"prompt": "### Question: ", "completion": "Rome"}] if held_out else None
        return Pipeline(model=tiny_model(), data=rows, eval=sets, tokenizer=tiny_tokenizer(), train=train)

    if not run().check():
        assert run().run().metrics
