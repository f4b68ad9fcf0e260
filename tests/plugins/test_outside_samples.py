"""Rows of other tools and data sets that were tried after the formats had been written."""

from __future__ import annotations

import pytest

from sftkit.data.documents import RowError
from sftkit.errors import DataError
from sftkit.testing import CHATML

ASK, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}
TOOL = {"type": "function", "function": {"name": "look_up", "description": "Looks up.", "parameters": {}}}
WITH_TOOLS = "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}" + CHATML
CALL = {"type": "function", "function": {"name": "look_up", "arguments": {"key": "a"}}}


def messages(read, *rows, template=CHATML, **options):
    (found,) = read(list(rows), template, **options).conversations
    return found.messages


def refused(read, row, template=CHATML):
    rows = read([row], template)
    with pytest.raises(RowError) as caught:
        _ = rows.outcomes
    return caught.value


# Questions with answers in a list


def test_a_system_text_beside_a_question_comes_before_it(read):
    talk = [{"system": "Be brief.", "input": "Hi", "output": "Hello."}, {"input": "More?", "output": "No."}]
    found = read([{"conversation": talk}], CHATML).conversations[0]
    assert [message["role"] for message in found.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert found.messages[0]["content"] == "Be brief."
    assert not found.notes


def test_flags_and_reasoning_beside_a_question_are_those_of_its_answer(read, marked):
    talk = [
        {"input": "1+1?", "output": "3", "output_with_loss": False},
        {"input": "Sure?", "output": "2", "weight": 1, "thinking": "Hm.", "id": 7},
    ]
    rows = read([{"conversation": talk}], CHATML)
    (found,) = rows.conversations
    assert found.messages[1]["train"] is False
    assert found.messages[3]["weight"] == 1
    assert "message key id ignored" in found.notes
    assert (
        "train is True, but output_with_loss is False"
        in refused(read, {"conversation": [{**talk[0], "train": True}]}).message
    )
    del talk[1]["thinking"]
    (outcome,) = read([{"conversation": talk}], CHATML).outcomes
    assert [part.split("</s>")[0] for part in marked(outcome.documents[0]).split("⟦")[1:]] == ["2"]


# Questions and answers in columns


@pytest.mark.parametrize(
    "row",
    [
        {"input": [ASK], "output": "Hello."},
        {"question": [ASK], "response": [ANSWER]},
        {"prompt": "Hi", "response": [ANSWER]},
    ],
)
def test_a_question_or_an_answer_may_be_messages(read, row, marked):
    rows = read([row], CHATML)
    assert rows.conversations[0].messages == [ASK, ANSWER]
    assert marked(rows.outcomes[0]).endswith("⟦Hello.</s>⟧\n")
    assert rows.ignored == set()


def test_a_switch_for_reasoning_is_not_reasoning(read):
    rows = read([{"input": "Hi", "output": "Hello.", "reasoning": switch} for switch in ("on", "Off ")], CHATML)
    for found in rows.conversations:
        assert found.messages == [ASK, ANSWER]
        assert found.notes == ["column reasoning ignored where it is a switch, such as on or off"]


SYSTEM = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize("system", ["Be brief.", {"from": "system", "value": "Be brief."}, SYSTEM])
def test_a_system_column_may_be_a_message(read, system):
    assert messages(read, {"system": system, "messages": [ASK, ANSWER]})[0] == SYSTEM


def test_system_message_is_a_name_of_the_system_column(read):
    rows = read([{"system_message": "Be brief.", "messages": [ASK, ANSWER]}], CHATML)
    assert rows.conversations[0].messages[0] == {"role": "system", "content": "Be brief."}
    assert rows.ignored == set()


# Contents


def test_parts_may_be_plain_texts(read):
    row = {"contents": [{"role": "user", "parts": ["H", "i"]}, {"role": "model", "parts": ["Hello."]}]}
    assert messages(read, row) == [ASK, ANSWER]


def test_thinking_may_be_a_list_of_texts(read):
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}], "closed": True}
    answer = {"role": "assistant", "content": [thought, {"type": "text", "text": "Hello."}]}
    rows = read([{"messages": [ANSWER]}], CHATML)
    found = rows.formatter.reader({"messages": [[ASK, answer]]}, 0)
    assert found.messages[1]["reasoning_content"] == "Hm."
    assert found.notes == ["content part key closed ignored"]


def test_keys_of_content_parts_that_nothing_reads_are_noted(read):
    result = {"type": "tool_result", "tool_use_id": "1", "content": "timeout", "is_error": True}
    call = {"type": "tool_use", "id": "1", "name": "look_up", "input": {}}
    talk = [ASK, {"role": "assistant", "content": [call]}, {"role": "user", "content": [result]}, ANSWER]
    rows = read([{"messages": [ANSWER]}], CHATML)
    assert "content part key is_error ignored" in rows.formatter.reader({"messages": [talk]}, 0).notes


@pytest.mark.parametrize(
    ("value", "text"), [({"degrees": 21}, '{"degrees": 21}'), ([{"degrees": 21}], '[{"degrees": 21}]'), (21, "21")]
)
def test_the_result_of_a_tool_may_be_a_value(read, value, text):
    talk = [ASK, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": value}, ANSWER]
    rows = read([{"messages": [ANSWER]}], CHATML)
    (found,) = [rows.formatter.reader({"messages": [talk]}, 0)]
    assert found.messages[2]["content"] == text


@pytest.mark.parametrize(
    "content", [[{"type": "image_url", "image_url": {"url": "x"}}], {"type": "image", "source": "x"}]
)
def test_an_image_in_the_result_of_a_tool_is_refused(read, content):
    rows = read([{"messages": [ANSWER]}], CHATML)
    parts = content if isinstance(content, list) else [content]
    inside = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": parts}]}
    for message in ({"role": "tool", "content": content}, inside):
        with pytest.raises(RowError, match="content has a part that is not text"):
            rows.formatter.reader({"messages": [[ASK, message]]}, 0)


# Tools and roles


def test_tools_of_a_message_are_those_of_the_row(read):
    row = {"messages": [{"role": "system", "content": "Be brief.", "tools": [TOOL]}, ASK, ANSWER]}
    rows = read([row], WITH_TOOLS)
    (found,) = rows.conversations
    assert found.tools == [TOOL]
    assert found.messages == [{"role": "system", "content": "Be brief."}, ASK, ANSWER]
    assert not found.notes
    assert "the column 'tools'" in refused(read, row).message


def test_tools_of_a_message_stay_there_if_the_template_reads_them(read):
    template = CHATML.replace("messages %}", "messages %}{% if message.tools %}{% endif %}", 1)
    row = {"messages": [{"role": "system", "content": "Be brief.", "tools": "look_up"}, ASK, ANSWER]}
    (found,) = read([row], template).conversations
    assert found.messages[0]["tools"] == "look_up"
    assert found.tools is None


def test_names_of_tools_in_a_message_are_no_descriptions(read):
    row = {"messages": [{**ASK, "tools": "bash"}, ANSWER]}
    (found,) = read([row], WITH_TOOLS).conversations
    assert (found.tools, found.notes) == (None, ["message key tools ignored"])


def test_tools_of_two_messages_are_refused(read):
    row = {"messages": [{**ASK, "tools": [TOOL]}, ANSWER, {**ASK, "tools": [TOOL]}, ANSWER]}
    error = refused(read, row, WITH_TOOLS)
    assert error.message == "messages 1 and 3 have tools, but the chat template takes one list of them"
    assert error.fix


def test_tools_of_a_column_win(read):
    row = {"tools": [TOOL], "messages": [{**ASK, "tools": [TOOL]}, ANSWER]}
    (found,) = read([row], WITH_TOOLS).conversations
    assert (found.tools, found.notes) == ([TOOL], ["message key tools ignored"])


@pytest.mark.parametrize("text", ["null", "[]", " ", "None"])
def test_tool_calls_without_calls_as_text(read, text):
    row = {"messages": [{**ASK, "tool_calls": text}, {**ANSWER, "tool_calls": text}]}
    assert messages(read, row) == [ASK, ANSWER]


def test_tools_and_calls_may_be_text_as_python_writes_it(read):
    row = {"tools": str([TOOL]), "messages": [ASK, {"role": "assistant", "content": "", "tool_calls": str([CALL])}]}
    (found,) = read([row], WITH_TOOLS).conversations
    assert found.tools == [TOOL]
    assert found.messages[1]["tool_calls"] == [CALL]


def test_an_environment_answers_like_a_tool(read):
    row = {"messages": [ASK, ANSWER, {"role": "environment", "content": "a.txt"}, ANSWER]}
    assert messages(read, row)[2] == {"role": "tool", "content": "a.txt"}


def test_a_message_in_another_channel_than_the_final_one_is_refused(read):
    thought = {"role": "assistant", "channel": "analysis", "content": "Hm."}
    error = refused(read, {"messages": [ASK, thought, {**ANSWER, "channel": "final"}]})
    assert "message 2 is in the channel 'analysis', so it is no answer" in error.message
    assert "reasoning_content" in error.fix
    assert messages(read, {"messages": [ASK, {**ANSWER, "channel": "final"}]}) == [ASK, ANSWER]
    reads = CHATML.replace("messages %}", "messages %}{% if message.channel %}{% endif %}", 1)
    assert messages(read, {"messages": [ASK, thought]}, template=reads)[1]["channel"] == "analysis"


# What the refusals say


@pytest.mark.parametrize(
    ("row", "renamed"),
    [
        ({"items": [ASK, ANSWER], "condition": "a"}, "{messages: items}"),
        ({"dialogue": ["Hi", "Hello."], "speakers": ["a", "b"]}, "{conversation: dialogue}"),
        ({"document": "a", "summary": "b"}, "{question: document, answer: summary}"),
    ],
)
def test_the_error_says_how_to_rename_the_columns(read, row, renamed):
    with pytest.raises(DataError) as caught:
        read([row], CHATML)
    assert caught.value.problems[0].fix.startswith(f"set formats:columns to {renamed} if that is right")


def test_columns_that_may_be_anything_get_no_suggestion(read):
    with pytest.raises(DataError) as caught:
        read([{"conversation_a": [ASK, ANSWER], "conversation_b": [ASK, ANSWER]}], CHATML)
    assert caught.value.problems[0].fix.startswith("rename columns")


def test_the_question_of_preferences_is_part_of_the_fix(read):
    with pytest.raises(DataError) as caught:
        read([{"input": "a", "chosen": "b", "rejected": "c"}], CHATML)
    assert caught.value.problems[0].fix.endswith("{question: input, answer: chosen}")


def test_a_mask_of_an_unknown_name_is_refused_unless_something_else_decides(read):
    row = {"input_ids": [1, 2], "my_mask": [0, 1]}
    with pytest.raises(DataError, match="the column 'my_mask' may say which tokens are trained"):
        read([row])
    assert read([row | {"labels": [-100, 2]}]).ignored == {"my_mask"}
    assert read([{"input_ids": [1, 2], "special_tokens_mask": [0, 1]}]).ignored == {"special_tokens_mask"}
    (outcome,) = read([{"input_ids": [1, 2], "response_mask": [0, 1]}]).outcomes
    assert list(outcome.documents[0].labels) == [-100, 2]
