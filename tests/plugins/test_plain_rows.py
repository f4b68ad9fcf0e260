"""Conversations of plain messages, of which those with the same roles are located together."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sftkit.data.documents import Formatted
from sftkit.testing import CHATML
from sftkit_plugins.formats.chat import Chat
from sftkit_plugins.formats.messages import MessagesReader
from sftkit_plugins.formats.turns import STRIPPED, Turns

FILES = {path.stem: path.read_text() for path in (Path(__file__).parent / "templates").glob("*.jinja")}
STRIPS = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</s>{% endfor %}"
DATED = "{{ strftime_now('%d') }}" + CHATML
TEMPLATES = {**FILES, "chatml": CHATML, "strips": STRIPS, "dated": DATED}
TEXTS = ["How?", " spaces ", "line\n", "日本語 🙂", "<think>a</think>b", "</s>", "<|im_end|>", "a", "How?How?"]


def chat(template, **options):
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    return Chat(reader=MessagesReader(("messages",)), template=template, special_tokens=special, **options)


def talk(*texts, system=False):
    """A conversation of these texts, by the user and the assistant in turn."""
    roles = (["system"] if system else []) + ["user", "assistant"] * len(texts)
    return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]


ROWS = [
    talk(*(TEXTS[(at + step * turn) % len(TEXTS)] for turn in range(length)), system=system)
    for at in range(len(TEXTS))
    for step, length, system in ((1, 2, False), (2, 4, False), (4, 3, True))
]


@pytest.fixture
def located(monkeypatch):
    """The conversations that are located one by one."""
    found, original = [], Turns.find

    def find(self, messages, *args):
        found.append(messages)
        return original(self, messages, *args)

    monkeypatch.setattr(Turns, "find", find)
    return found


def alone(template, row, **options):
    """What a row becomes in a formatter that has seen no other, or how it is refused."""
    try:
        return chat(template, **options)({"messages": [row]})[0]
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("options", [{}, {"turns": "last"}, {"roles": ("user",)}, {"reasoning": "last_turn_only"}])
@pytest.mark.parametrize("name", sorted({"chatml", "strips", "dated", "thinking", "last_turn_differs"} & {*TEMPLATES}))
def test_a_row_becomes_the_same_among_others_as_alone(name, options):
    template = TEMPLATES[name]
    expected = [alone(template, row, **options) for row in ROWS]
    good = [at for at, outcome in enumerate(expected) if not isinstance(outcome, str)]
    assert good
    made = chat(template, **options)({"messages": [ROWS[at] for at in good * 2]})
    assert made == [expected[at] for at in good * 2]


def test_rows_with_the_same_roles_are_located_once(located):
    chat(CHATML)({"messages": [talk(f"question {number}", f"answer {number}") for number in range(10)]})
    assert len(located) == 1


def test_a_row_whose_text_is_changed_is_noted(located):
    first, second, third = chat(STRIPS)({"messages": [talk("a", "b"), talk("a", " b"), talk("a", "b")]})
    assert len(located) == 1
    assert isinstance(second, Formatted)
    assert second.notes[-1] == STRIPPED
    assert not isinstance(first, Formatted) or STRIPPED not in first.notes
    assert third == first


def test_a_row_into_which_the_template_looks_is_located_by_itself(located):
    looking = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if '##' in m.content %}{% endif %}</s>{% endfor %}"
    )
    chat(looking)({"messages": [talk("a", "b"), talk("a", "c"), talk("a", "## d"), talk("a", "e")]})
    assert [messages[1]["content"] for messages in located] == ["b", "## d"]


def test_a_replaced_formatter_trains_what_it_says():
    formatter = chat(CHATML)
    rows = {"messages": [talk("a", "b", "c", "d")] * 2}
    formatter(rows)
    assert dataclasses.replace(formatter, turns="last")(rows) == chat(CHATML, turns="last")(rows) != formatter(rows)
