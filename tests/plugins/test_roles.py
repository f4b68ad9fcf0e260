"""Whose turn a message is, under the names that other tools use."""

import pytest

from sftkit.data.documents import RowError
from sftkit.testing import CHATML
from sftkit_plugins.formats.roles import NAMES, is_call, role_of

NAMED = [(name, role) for role, names in NAMES.items() for name in names if not is_call(name)]


@pytest.mark.parametrize(("name", "role"), NAMED)
@pytest.mark.parametrize("keys", [("role", "content"), ("from", "value"), ("role", "value"), ("role", "message")])
def test_every_name_stands_for_its_role_in_every_shape_of_message(read, name, role, keys):
    sender, text = keys
    row = {"messages": [{sender: name, text: "a"}, {sender: name.upper(), text: "b"}]}
    (conversation,) = read([row], CHATML).conversations
    assert conversation.messages == [{"role": role, "content": "a"}, {"role": role, "content": "b"}]


@pytest.mark.parametrize("name", ["Tool Response", "tool-response", "TOOL_RESPONSE"])
def test_case_spaces_and_hyphens_do_not_matter(name):
    assert role_of(name) == "tool"


def test_an_unknown_role_is_refused_with_all_names(read):
    rows = read([{"messages": [{"role": "narrator", "content": "a"}]}], CHATML)
    with pytest.raises(RowError, match="message 1: unknown role 'narrator'") as caught:
        rows.formatter(rows.columns)
    assert "chatgpt" in caught.value.fix
    assert "observation" in caught.value.fix


@pytest.mark.parametrize("role", ["function_call", "tool_call", "Tool_Calls"])
def test_consecutive_calls_are_one_turn_of_the_assistant(read, role):
    calls = [f'{{"name": "weather", "arguments": {{"city": "{city}"}}}}' for city in ("Ulm", "Bonn")]
    turns = [{"role": "user", "content": "Weather?"}, *({"role": role, "content": call} for call in calls)]
    results = [{"role": "tool_response", "content": "rain"}, {"role": "tool_response", "content": "sun"}]
    (conversation,) = read([{"messages": turns + results}], CHATML).conversations
    assert [message["role"] for message in conversation.messages] == ["user", "assistant", "tool", "tool"]
    functions = [call["function"] for call in conversation.messages[1]["tool_calls"]]
    assert functions == [{"name": "weather", "arguments": {"city": city}} for city in ("Ulm", "Bonn")]


def test_calls_with_different_flags_stay_apart(read):
    call = {"role": "tool_call", "content": '{"name": "f", "arguments": {}}'}
    turns = [{"role": "user", "content": "a", "train": None}, {**call, "train": False}, {**call, "train": True}]
    (conversation,) = read([{"messages": turns}], CHATML).conversations
    assert [message.get("train") for message in conversation.messages] == [None, False, True]


@pytest.mark.parametrize("value", ["not a call", "[]", '{"arguments": {}}'])
def test_a_call_that_cannot_be_read_is_refused(read, value):
    rows = read(
        [{"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": value}]}], CHATML
    )
    with pytest.raises(RowError, match="message 2"):
        rows.formatter(rows.columns)


def test_developer_messages_stay_unless_the_run_makes_them_system_messages(read):
    row = {"messages": [{"role": "developer", "content": "Answer in French."}, {"role": "user", "content": "Hi"}]}
    assert read([row], CHATML).conversations[0].messages[0]["role"] == "developer"
    (conversation,) = read([row], CHATML, developer_as_system=True).conversations
    assert conversation.messages[0] == {"role": "system", "content": "Answer in French."}
