"""How often conversations are rendered, and what a formatter keeps of them."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest

from sftkit.testing import CHATML
from sftkit_plugins.formats import turns
from sftkit_plugins.formats.chat import Chat
from sftkit_plugins.formats.conversation import Conversation
from sftkit_plugins.formats.rendering import Rendering

TEMPLATES = {path.stem: path.read_text() for path in (Path(__file__).parent / "templates").glob("*.jinja")}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
PARAMETERS = {"type": "object", "properties": {"town": {"type": "string", "description": "Where."}}}
TOOLS = [{"type": "function", "function": {"name": "look_up", "description": "Looks up.", "parameters": PARAMETERS}}]


class Reader:
    """Gives the rows, which are conversations."""

    columns = frozenset({"row"})

    def __call__(self, rows, index):
        return rows["row"][index]


@dataclass
class Count:
    """The calls of the render function, and how many characters they returned."""

    calls: int = 0
    characters: int = 0


@pytest.fixture
def count(monkeypatch):
    counted, original = Count(), Rendering.text

    def text(self, *args, **options):
        rendered = original(self, *args, **options)
        counted.calls += 1
        counted.characters += len(rendered)
        return rendered

    monkeypatch.setattr(Rendering, "text", text)
    return counted


def conversation(rounds, *, system=False, calls=0, reasoning=False):
    """A conversation of some rounds; in each, the assistant makes some calls one after the other."""
    messages = [{"role": "system", "content": "Be brief."}] if system else []
    for number in range(rounds):
        messages.append({"role": "user", "content": f"Question {number}?"})
        for at in range(calls):
            arguments = {"town": f"Town {number}-{at}"}
            call = {"id": "abcdefghi", "function": {"name": "look_up", "arguments": arguments}}
            messages.append({"role": "assistant", "content": "", "tool_calls": [call | {"type": "function"}]})
            messages.append({"role": "tool", "tool_call_id": "abcdefghi", "content": f"Result {number}."})
        thought = {"reasoning_content": f"Thought {number}."} if reasoning else {}
        messages.append({"role": "assistant", "content": f"Answer {number}.", **thought})
    return Conversation(messages, None, TOOLS if calls else None)


def chat(template):
    return Chat(reader=Reader(), template=template, special_tokens=SPECIAL)


@pytest.mark.parametrize("name", ["thinking", "last_turn_differs", "chatml", "arguments_as_tags"])
def test_rows_of_many_structures_are_rendered_two_and_a_half_times(count, name):
    template = TEMPLATES.get(name, CHATML)
    kinds = [{"system": system, "calls": calls} for system, calls in product((False, True), (0, 1, 2, 3))]
    if name in ("thinking", "last_turn_differs"):
        kinds += [{"system": system, "reasoning": True} for system in (False, True)]
    if name == "chatml":
        kinds = [kind for kind in kinds if not kind["calls"]]
    rows = [conversation(rounds, **kind) for rounds in range(1, 60 // len(kinds) + 12) for kind in kinds]
    chat(template)({"row": rows})
    assert count.calls <= 2.5 * len(rows)


def test_rows_of_one_structure_are_rendered_once(count):
    formatter = chat(TEMPLATES["thinking"])
    rows = [conversation(3, calls=2)] * 10
    formatter({"row": rows})
    before = count.calls
    formatter({"row": rows})
    assert count.calls - before == 10


@pytest.mark.parametrize("calls", [0, 2])
@pytest.mark.parametrize("name", ["thinking", "mistral_v3", "one_assistant_turn"])
def test_the_work_grows_with_the_number_of_turns_and_calls(count, name, calls):
    def work(rounds):
        before = Count(count.calls, count.characters)
        chat(TEMPLATES[name])({"row": [conversation(rounds, calls=calls)]})
        return count.calls - before.calls, count.characters - before.characters

    (few_calls, few), (many_calls, many) = work(100), work(400)
    assert many_calls == few_calls
    assert many <= 4.1 * few


def test_each_turn_as_last_is_rendered_for_each_turn(count):
    formatter = Chat(
        reader=Reader(), template=TEMPLATES["thinking"], special_tokens=SPECIAL, reasoning="each_turn_as_last"
    )
    (found,) = formatter({"row": [conversation(5, reasoning=True)]})
    assert len(found.documents) == 5


def test_the_structures_that_are_kept_are_bounded(monkeypatch, count):
    monkeypatch.setattr(turns, "KEPT", 4)
    formatter = chat(TEMPLATES["thinking"])
    for _ in range(2):
        formatter({"row": [conversation(rounds) for rounds in range(1, 9)]})
    (known,) = formatter._known.values()
    assert len(known[1]._structures) == 4


@pytest.mark.parametrize("name", ["thinking", "last_turn_differs"])
def test_a_used_formatter_pickles_to_the_same_bytes_as_a_new_one(name):
    formatter = chat(TEMPLATES[name])
    before = pickle.dumps(formatter)
    formatter({"row": [conversation(2, calls=1)]})
    assert pickle.dumps(formatter) == before
    assert pickle.loads(before)({"row": [conversation(2)]}) == formatter({"row": [conversation(2)]})
