"""Keys of messages: used, refused, or noted as ignored."""

import json

import pytest
from datasets import Dataset, Features, Json

from sftkit.data.documents import RowError
from sftkit.testing import CHATML

PLAIN = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
ASK = {"role": "user", "content": "Hi"}
THINKING = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}{% generation %}"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}</s>{% endgeneration %}{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ALWAYS_THINKING = THINKING.replace("{% if m.reasoning_content %}", "").replace(
    "</think>\n\n{% endif %}", "</think>\n\n"
)


def conversation(read, messages, template=CHATML, **options):
    return read([{"messages": messages}], template, **options).conversations[0]


def refused(read, messages, template=CHATML):
    rows = read([{"messages": messages}], template)
    with pytest.raises(RowError) as caught:
        rows.formatter(rows.columns)
    assert caught.value.fix
    return caught.value.message


# Unknown keys


def test_keys_that_nothing_reads_are_noted_once_per_row(read):
    messages = [{"role": "user", "content": "Hi", "name": "al", "id": 1}, {"role": "user", "content": "a", "name": "b"}]
    found = conversation(read, messages)
    assert found.notes == ["message key id ignored", "message key name ignored"]
    assert found.messages == [{"role": "user", "content": "Hi"}, {"role": "user", "content": "a"}]


@pytest.mark.parametrize("read_as", ["m.name", "m['name']", "m.get('name')", "messages[loop.index0].name"])
def test_keys_that_the_template_reads_are_used(read, read_as):
    template = CHATML.replace(
        "messages %}", "messages %}{% set m = message %}{% if m.role and " + read_as + " %}{% endif %}"
    )
    found = conversation(read, [{**ASK, "name": "al", "mood": "good"}], template)
    assert found.notes == ["message key mood ignored"]
    assert found.messages[0]["name"] == "al"


def test_the_name_of_a_tool_in_the_template_is_not_the_name_of_a_message(read):
    template = CHATML + "{% for tool in tools or [] %}{{ tool.name }}{{ message.tool_calls[0].name }}{% endfor %}"
    assert conversation(read, [{**ASK, "name": "al"}], template).notes == ["message key name ignored"]


def test_a_template_that_writes_whole_messages_reads_every_key(read):
    template = "{% for m in messages %}{% if m.role %}{% endif %}{{ m | tojson }}{% endfor %}"
    found = conversation(read, [{**ASK, "mood": "good"}], template)
    assert found.notes == ()
    assert found.messages == [{**ASK, "mood": "good"}]


def test_nulls_and_empty_values_are_not_noted(read):
    assert conversation(read, [{**ASK, "name": None, "annotations": [], "refusal": ""}]).notes == ()


# Flags


@pytest.mark.parametrize("key", ["train", "training", "loss"])
@pytest.mark.parametrize(
    ("value", "train"), [(False, False), (0, False), (0.0, False), (True, True), (1, True), (1.0, True)]
)
def test_flags_of_other_tools_become_the_key_train(read, key, value, train):
    (_, answer) = conversation(read, [ASK, {"role": "assistant", "content": "a", key: value}]).messages
    assert answer == {"role": "assistant", "content": "a", "train": train}


def test_a_flag_that_is_null_is_the_default(read):
    messages = [{**ASK, "loss": None}, {"role": "assistant", "content": "a", "loss": None}, {**ASK, "loss": False}]
    assert "train" not in conversation(read, messages).messages[1]


def test_loss_scale_is_a_weight(read):
    (answer,) = conversation(read, [{"role": "assistant", "content": "a", "loss_scale": 0.5}]).messages
    assert answer["weight"] == 0.5


@pytest.mark.parametrize(
    "flags", [{"train": True, "loss": False}, {"training": False, "weight": 1}, {"weight": 0.5, "loss_scale": 2.0}]
)
def test_flags_that_contradict_each_other_are_refused(read, flags):
    assert "message 1: " in refused(read, [{"role": "assistant", "content": "a", **flags}])


def test_a_flag_that_is_neither_true_nor_false_is_refused_by_its_name(read):
    assert "training is 0.5" in refused(read, [{"role": "assistant", "content": "a", "training": 0.5}])


# Reasoning


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content", "thinking"])
def test_reasoning_reaches_the_template_under_each_name(read, key):
    (answer,) = conversation(read, [{"role": "assistant", "content": "a", key: "b"}]).messages
    assert answer["reasoning_content"] == answer["thinking"] == answer["reasoning"] == "b"


@pytest.mark.parametrize("reasoning", [{"reasoning": "a", "thinking": "b"}, {"reasoning": {"effort": "low"}}])
def test_reasoning_that_is_ambiguous_or_no_text_is_refused(read, reasoning):
    assert "reasoning" in refused(read, [{"role": "assistant", "content": "a", **reasoning}])


def test_inline_reasoning_moves_to_the_field_that_the_template_reads(read, marked):
    messages = [ASK, {"role": "assistant", "content": "<think>\nI greet.\n</think>\n\nHello"}]
    (outcome,) = read([{"messages": messages}], THINKING).outcomes
    assert marked(outcome) == "<user>Hi</s><assistant>⟦<think>\nI greet.\n</think>\n\nHello</s>⟧"


def test_inline_reasoning_stays_if_the_template_reads_no_field(read):
    content = "<think>\nI greet.\n</think>\n\nHello"
    assert conversation(read, [{"role": "assistant", "content": content}]).messages[0]["content"] == content


def test_an_empty_block_moves_only_if_the_template_writes_one(read):
    message = {"role": "assistant", "content": "<think>\n\n</think>\n\nHello"}
    assert conversation(read, [message], THINKING).messages == [message]
    (moved,) = conversation(read, [message], ALWAYS_THINKING).messages
    assert moved == {"role": "assistant", "content": "Hello"}


def test_reasoning_in_field_and_content_must_be_the_same(read):
    message = {"role": "assistant", "content": "<think>a</think>Hello", "reasoning_content": "a"}
    (kept,) = conversation(read, [message], THINKING).messages
    assert (kept["content"], kept["reasoning_content"]) == ("Hello", "a")
    assert "differ" in refused(read, [{**message, "reasoning_content": "b"}], THINKING)


# Tool calls


def test_arguments_keep_their_order_numbers_and_nulls_in_json_text(read):
    arguments = '{"b": 3, "a": 3.0, "c": null, "d": [1, {"e": -0.5}]}'
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    (answer,) = conversation(read, [{"role": "assistant", "content": None, "tool_calls": [call]}]).messages
    assert json.dumps(answer["tool_calls"][0]["function"]["arguments"]) == arguments


def test_arguments_in_a_column_of_json_keep_their_nulls(read):
    call = {"function": {"name": "f", "arguments": {"a": None, "b": 3}}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    rows = Dataset.from_dict({"messages": [messages]}, features=Features({"messages": Json()}))
    (answer,) = read(rows, CHATML).conversations[0].messages
    assert answer == {"role": "assistant", "tool_calls": [call]}


@pytest.mark.parametrize("key", ["arguments", "parameters", "input", "args"])
def test_bare_calls_are_wrapped_and_other_names_of_arguments_are_read(read, key):
    message = {"role": "assistant", "content": "", "tool_calls": [{"name": "f", key: {"x": 1}}]}
    (answer,) = conversation(read, [message]).messages
    assert answer["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]


def test_the_old_key_function_call_becomes_tool_calls(read):
    message = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}}
    (answer,) = conversation(read, [message]).messages
    assert answer["tool_calls"] == [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]


def test_calls_of_a_user_are_refused(read):
    calls = [{"name": "f", "arguments": {"x": 1}}]
    assert "(user) has tool calls" in refused(read, [{**ASK, "tool_calls": calls}])


# Contents in blocks


def test_blocks_of_anthropic_become_reasoning_text_calls_and_results(read):
    template = CHATML.replace("messages %}", "messages %}{% if message.tool_call_id %}{% endif %}")
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I look.", "signature": "x"},
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Ulm"}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "rain"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Rain."}]},
    ]
    found = conversation(read, messages, template).messages
    call = {"type": "function", "id": "t1", "function": {"name": "weather", "arguments": {"city": "Ulm"}}}
    assert found == [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "I look.",
            "thinking": "I look.",
            "reasoning": "I look.",
            "tool_calls": [call],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "t1"},
        {"role": "assistant", "content": "Rain."},
    ]


def test_a_result_and_a_question_in_one_message_become_two(read):
    blocks = [{"type": "tool_result", "tool_use_id": "t1", "content": "rain"}, {"type": "text", "text": "And now?"}]
    found = conversation(read, [{"role": "user", "content": blocks}])
    assert found.messages == [{"role": "tool", "content": "rain"}, {"role": "user", "content": "And now?"}]
    assert found.notes == ["message key tool_call_id ignored"]


def test_blocks_of_bedrock_are_read(read):
    messages = [
        {"role": "user", "content": [{"text": "2+2?"}]},
        {"role": "assistant", "content": [{"reasoningContent": {"reasoningText": {"text": "Add."}}}, {"text": "4"}]},
        {"role": "assistant", "content": [{"toolUse": {"toolUseId": "t", "name": "f", "input": {"x": 1}}}]},
        {"role": "user", "content": [{"toolResult": {"toolUseId": "t", "content": [{"json": {"y": 2}}]}}]},
    ]
    found = conversation(read, messages).messages
    assert [message.get("content") for message in found] == ["2+2?", "4", None, '{"y": 2}']
    assert found[1]["reasoning_content"] == "Add."
    assert found[2]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert found[3]["role"] == "tool"


@pytest.mark.parametrize(
    "block", [{"type": "image_url", "image_url": {"url": "a"}}, {"type": "document", "source": "a"}]
)
def test_blocks_that_are_not_text_are_refused_by_their_kind(read, block):
    messages = [{"role": "user", "content": [{"type": "text", "text": "What?"}, block]}]
    assert f"not text: {block['type']}" in refused(read, messages)
