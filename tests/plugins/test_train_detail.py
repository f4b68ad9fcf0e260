"""``train_detail``: messages of which only parts are trained."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from sftkit.api import RowError
from sftkit.testing import CHATML
from sftkit_plugins.formats.details import with_parts

ASK = {"role": "user", "content": "Hi"}
STRIPS = CHATML.replace("message['content']", "(message['content'] | trim)").replace(
    "message.content", "(message.content | trim)"
)
#: Reads reasoning from a field, and writes a think block in each turn.
THINKS = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}<think>{{ m.reasoning_content or '' }}</think>"
    "{% endif %}{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def part(begin: Any, end: Any, train: Any = True) -> dict[str, Any]:
    """One item of ``train_detail``."""
    return {"begin_offset": begin, "end_offset": end, "train": train}


WHOLE = part(0, 5)


@pytest.fixture
def trained(read, marked):
    """A conversation of the given answer with its trained parts in brackets; without the question."""

    def trained(answer, template=CHATML, **options):
        (outcome,) = read([{"messages": [ASK, {"role": "assistant", **answer}]}], template, **options).outcomes
        return marked(outcome).partition("assistant")[2].lstrip("\n>")

    return trained


def refused(read, answer, template=CHATML, **options):
    rows = read([{"messages": [ASK, {"role": "assistant", **answer}]}], template, **options)
    with pytest.raises(RowError) as error:
        _ = rows.outcomes
    return str(error.value)


def test_the_parts_and_the_closing_token_are_trained(trained):
    details = [part(0, 6, False), part(7, 11)]
    assert trained({"content": "Wrong. Right.", "train_detail": details}) == "Wrong. ⟦Right⟧.⟦</s>⟧\n"


def test_parts_may_be_in_any_order_and_touch_each_other(trained):
    details = [part(6, 7), part(3, 5), part(0, 0)]
    assert trained({"content": "abcdefghij", "train_detail": details}) == "⟦a⟧bc⟦defgh⟧ij⟦</s>⟧\n"


def test_a_turn_without_a_trained_part_is_not_trained(read):
    rows = [{"messages": [ASK, {"role": "assistant", "content": "No.", "train_detail": [part(0, 2, False)]}, ASK]}]
    (outcome,) = read(rows, CHATML).outcomes
    assert outcome.reason == "no assistant turn"


@pytest.mark.parametrize("details", [None, []])
def test_no_parts_leave_the_default(trained, details):
    assert trained({"content": "Right.", "train_detail": details}) == "⟦Right.</s>⟧\n"


def test_a_weight_is_that_of_the_parts(read):
    answer = {"role": "assistant", "content": "Right.", "train_detail": [part(0, 1)], "weight": 0.5}
    (document,) = read([{"messages": [ASK, answer]}], CHATML).outcomes
    assert {span.weight for span in document if span.trained} == {0.5}


def test_offsets_count_the_characters_in_the_data_if_the_template_strips_them(trained):
    assert STRIPS != CHATML
    assert trained({"content": "  Right.  ", "train_detail": [part(1, 3)]}, STRIPS) == "⟦Ri⟧ght.⟦</s>⟧\n"


def test_offsets_count_a_think_block_that_moves_to_its_field(trained):
    content = "<think>Hm.</think>Right."
    kept = trained({"content": content, "train_detail": [part(18, 22)]}, THINKS)
    assert kept == "<think>Hm.</think>⟦Right⟧.⟦</s>⟧"
    everything = trained({"content": content, "train_detail": [part(0, 22)]}, THINKS)
    assert everything == "⟦<think>Hm.</think>Right⟧.⟦</s>⟧"


def test_a_part_of_a_think_block_that_moves_is_refused(read):
    message = refused(read, {"content": "<think>Hm.</think>Right.", "train_detail": [part(7, 22)]}, THINKS)
    assert "trains a part of the <think> block" in message


def test_reasoning_in_a_field_is_not_trained_by_parts_of_the_content(trained):
    answer = {"content": "Right.", "reasoning_content": "Right.", "train_detail": [WHOLE]}
    assert trained(answer, THINKS) == "<think>Right.</think>⟦Right.</s>⟧"


@pytest.mark.parametrize(
    ("details", "said"),
    [
        ("all", "is not a list of parts"),
        ([{"begin_offset": 0, "end_offset": 1}], "has the part {'begin_offset': 0, 'end_offset': 1}"),
        ([part(0, 5, 0.5)], "has the part {'begin_offset': 0, 'end_offset': 5, 'train': 0.5}"),
        ([part("0", 5)], "has the part {'begin_offset': '0'"),
        ([part(0, 6)], "has the offsets 0 to 6, but the content has 6 characters"),
        ([part(4, 3)], "has the offsets 4 to 3"),
        ([WHOLE, part(2, 5, False)], "has parts that overlap at offset 2 and contradict each other"),
        ([WHOLE, part(1, 1), part(3, 3, False)], "has parts that overlap at offset 3 and contradict each other"),
    ],
)
def test_invalid_parts_are_refused(details, said):
    with pytest.raises(RowError) as error:
        with_parts({"role": "assistant", "content": "Right."}, details, "Right.", 0, "message 2")
    assert f"message 2: train_detail {said}" in str(error.value)


@pytest.mark.parametrize(
    "answer",
    [
        {"train_detail": [WHOLE], "train": False},
        {"train_detail": [WHOLE], "weight": 0},
        {"train_detail": [part(0, 5, False)], "train": True},
    ],
)
def test_parts_and_flags_that_contradict_each_other_are_refused(read, answer):
    assert "but a flag of the message says otherwise" in refused(read, {"content": "Right.", **answer})


def test_parts_of_a_message_with_tool_calls_are_refused(read):
    call = {"function": {"name": "look", "arguments": {}}}
    answer = {"content": "Right.", "train_detail": [WHOLE], "tool_calls": [call]}
    assert "but the message also has tool calls" in refused(read, answer)


def test_parts_have_no_effect_if_everything_is_trained(read):
    answer = {"content": "Right.", "train_detail": [WHOLE]}
    assert "has the key train_detail, which has no effect with loss=all" in refused(read, answer, loss="all")


@given(st.text(st.sampled_from("ab \n"), min_size=1, max_size=12), st.data())
@settings(max_examples=200, derandomize=True)
def test_exactly_the_characters_of_the_trained_parts_are_kept(content, data):
    flags = data.draw(st.lists(st.booleans(), min_size=len(content), max_size=len(content)))
    details = [part(at, at, flag) for at, flag in enumerate(flags)]
    message = with_parts({"role": "assistant", "content": content}, details, content, 0, "message 1")
    kept = {at for start, end in message.get("train_detail", ()) for at in range(start, end)}
    assert kept == {at for at, flag in enumerate(flags) if flag}


def test_null_keys_of_a_part_and_an_empty_list_say_nothing(trained):
    assert trained({"content": "abc", "train_detail": [part(0, 0) | {"note": None}]}) == "⟦a⟧bc⟦</s>⟧\n"
    assert trained({"content": "abc", "train_detail": []}) == "⟦abc</s>⟧\n"


def test_parts_of_an_empty_content_are_refused_with_a_fix_that_helps():
    with pytest.raises(RowError) as caught:
        with_parts({"role": "assistant", "content": ""}, [part(0, 0)], "", 0, "message 1")
    assert caught.value.fix == "remove train_detail"
