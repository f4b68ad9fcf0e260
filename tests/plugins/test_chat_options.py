"""The options of plugin formats that decide what a chat template may leave out, and which values it gets."""

from __future__ import annotations

from pathlib import Path

import pytest

from sftkit.data.documents import RowError, documents_of
from sftkit.errors import ConfigError
from sftkit.testing import CHATML, run_problems
from sftkit_plugins.formats import Formats

TEMPLATES = {path.stem: path.read_text() for path in (Path(__file__).parent / "templates").glob("*.jinja")}
TALK = [
    {"role": "user", "content": "Hi", "reasoning_content": None},
    {"role": "assistant", "content": "Hello", "reasoning_content": "I greet."},
    {"role": "user", "content": "Bye", "reasoning_content": None},
    {"role": "assistant", "content": "Bye.", "reasoning_content": "I part."},
]


@pytest.fixture
def texts(read):
    """The rendered documents of rows; arguments as of ``read``."""

    def made(*args, **options):
        documents = documents_of(read(*args, **options).outcomes)
        return ["".join(span.text for span in document) for document in documents]

    return made


def test_variables_of_the_run_reach_the_template(texts):
    template = "{{ mood }}" + CHATML
    rows = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}]
    assert texts(rows, template, data={"chat_template_kwargs": {"mood": "good"}})[0].startswith("good<|im_start|>")


@pytest.mark.parametrize("name", ["messages", "tools", "documents", "add_generation_prompt"])
def test_variables_that_each_row_sets_are_refused(name):
    problems = run_problems(Formats(), data={"chat_template_kwargs": {name: 1}})
    assert any(f"data.chat_template_kwargs cannot set {name}" in str(problem) for problem in problems)


@pytest.mark.parametrize("row", [{"text": "Hi"}, {"input_ids": [1, 2], "labels": [1, 2]}])
def test_variables_without_a_chat_template_are_refused(read, row):
    given = {"chat_template_kwargs": {"mood": "good"}}
    with pytest.raises(ConfigError, match="chat_template_kwargs has no effect"):
        read([row], data=given)
    mixed = {"train": None, "mix": {"a.jsonl": 1, "b.jsonl": 1}}
    assert read([row], data={**given, **mixed}).outcomes


def test_variables_beside_a_function_that_makes_the_text_are_refused():
    problems = run_problems(Formats(formatting="json:dumps"), data={"chat_template_kwargs": {"mood": "good"}})
    assert any("has no effect: formats:formatting makes the text" in str(problem) for problem in problems)


def test_what_the_template_leaves_out_is_refused_unless_the_run_allows_it(read):
    roles = ("developer", "user", "assistant")
    rows = [{"messages": [{"role": role, "content": f"I am the {role}."} for role in roles]}]
    with pytest.raises(RowError, match="leaves out the content of message 1"):
        _ = read(rows, TEMPLATES["ignores_roles"]).outcomes
    (found,) = read(rows, TEMPLATES["ignores_roles"], allow_left_out=["developer"]).outcomes
    assert found.notes == ("developer message left out by the template",)


def test_each_turn_can_be_rendered_as_the_last(texts):
    rows = [{"messages": TALK}]
    assert len(texts(rows, TEMPLATES["thinking"], reasoning="each_turn_as_last")) == 2
    assert len(texts(rows, TEMPLATES["thinking"])) == 1


def test_reasoning_has_no_effect_if_everything_is_trained(read):
    with pytest.raises(ConfigError, match="reasoning has no effect with loss=all"):
        read([{"messages": TALK}], TEMPLATES["thinking"], loss="all", reasoning="each_turn_as_last")


@pytest.mark.parametrize(("options", "date"), [({}, "2024-07-26"), ({"date": "2030-01-02"}, "2030-01-02")])
def test_the_date_of_the_run_is_printed(texts, options, date):
    rows = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}]
    assert f"Today is {date}." in texts(rows, TEMPLATES["last_turn_differs"], **options)[0]
