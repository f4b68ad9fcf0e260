"""Small inputs that other tools, or earlier releases, got wrong without a word, and the right result for each."""

import json

import pytest
from datasets import Dataset, Features, Json

from sftkit.errors import DataError
from sftkit.testing import CHATML

PLAIN = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
#: Writes a default system text, as Qwen 2.5 does.
DEFAULT_SYSTEM = "{% if messages[0].role != 'system' %}<|im_start|>system\nDefault.<|im_end|>\n{% endif %}" + PLAIN
#: Writes a think block for the last turn, even an empty one, and drops the reasoning of earlier turns, as Qwen3 does.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% set thought = '' %}"
    "{% set said = m.content or '' %}{% if m.reasoning_content is string %}{% set thought = m.reasoning_content %}"
    "{% elif '</think>' in said %}{% set thought = said.split('</think>')[0].split('<think>')[-1] %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.last %}<think>\n{{ thought.strip('\n') }}\n</think>\n\n{% endif %}{{ said }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
#: Writes a think block of its own around the reasoning of a field, and contents as they are.
FIELD_ONLY = THINKING.replace("{% elif '</think>' in said %}", "{% elif false %}")


def trained(outcome):
    return [span.text for span in getattr(outcome, "documents", [outcome])[0] if span.trained]


@pytest.mark.parametrize("template", [CHATML, DEFAULT_SYSTEM])
def test_a_system_column_beside_sharegpt_is_the_system_message(read, marked, template):
    """``10.jsonl``"""
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ahoy!"}]
    (outcome,) = read([{"conversations": turns, "system": "You are a pirate."}], template).outcomes
    text = marked(outcome)
    assert text.startswith("<|im_start|>system\nYou are a pirate.<|im_end|>\n<|im_start|>user\nHi")
    assert trained(outcome)[0].startswith("Ahoy!")
    assert "Default." not in text


def test_system_and_history_of_alpaca_are_used(read, marked):
    """``alpaca_history_system.json``"""
    row = {"instruction": "And in winter?", "input": "", "output": "It snows.", "system": "You know Ulm."}
    (outcome,) = read([{**row, "history": [["How is it in summer?", "It is warm."]]}]).outcomes
    assert marked(outcome).startswith("You know Ulm.\n\nBelow is an instruction that describes a task.")
    assert trained(outcome) == ["It is warm.</s>", "It snows."]


def test_a_system_column_beside_messages_is_the_system_message(read, marked):
    """``anthropic_system_only.jsonl``"""
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    (outcome,) = read([{"system": "You are terse.", "messages": messages}], DEFAULT_SYSTEM).outcomes
    assert marked(outcome).startswith("<|im_start|>system\nYou are terse.<|im_end|>")


def test_a_developer_message_is_written_as_system_if_the_run_says_so(read, marked):
    """``09.jsonl``"""
    turns = [{"role": "developer", "content": "Answer in French."}, {"role": "user", "content": "Hi"}]
    row = {"messages": [*turns, {"role": "assistant", "content": "Bonjour."}]}
    (outcome,) = read([row], CHATML, developer_as_system=True).outcomes
    assert marked(outcome).startswith("<|im_start|>system\nAnswer in French.<|im_end|>")


def test_bare_functions_are_wrapped_as_servers_send_them(read, marked):
    """``11c.jsonl``"""
    function = {"name": "get_weather", "description": "Weather", "parameters": {"type": "object"}}
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    template = "{{ tools | tojson }}" + CHATML
    (outcome,) = read([{"messages": messages, "tools": [function]}], template).outcomes
    assert marked(outcome).startswith(json.dumps([{"type": "function", "function": function}]))


def test_variables_of_a_row_are_those_of_its_template(read):
    """``12.jsonl``"""
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    row = {"messages": messages, "chat_template_kwargs": {"enable_thinking": False}}
    rows = read([row], CHATML + "{% if enable_thinking %}{% endif %}")
    assert rows.conversations[0].variables == {"enable_thinking": False}
    assert rows.ignored == set()


@pytest.mark.parametrize("template", [CHATML, PLAIN])
@pytest.mark.parametrize("flags", [{"training": False}, {"loss": False}, {"loss": 0.0}, {"train": 0}, {"weight": 0}])
def test_a_turn_that_its_flag_excludes_is_not_trained(read, template, flags):
    """``13.jsonl``"""
    wrong, right = {"role": "assistant", "content": "Wrong."}, {"role": "assistant", "content": "Right."}
    asked = [{"role": "user", "content": "Hi"}, {"role": "user", "content": "Hm?"}]
    (outcome,) = read([{"messages": [asked[0], {**wrong, **flags}, asked[1], right]}], template).outcomes
    assert [text[:6] for text in trained(outcome)] == ["Right."]


@pytest.mark.parametrize("template", [CHATML, PLAIN])
def test_only_the_parts_of_a_turn_that_are_marked_are_trained(read, template):
    """``13.jsonl``, with ``train_detail``"""
    details = [
        {"begin_offset": 7, "end_offset": 11, "train": True},
        {"begin_offset": 0, "end_offset": 6, "train": False},
    ]
    wrong = {"role": "assistant", "content": "Wrong. Right.", "train_detail": details}
    nothing = {**wrong, "train_detail": details[1:]}
    (outcome,) = read([{"messages": [{"role": "user", "content": "Hi"}, wrong, nothing]}], template).outcomes
    first, closing, *more = trained(outcome)
    assert (first, more) == ("Right", [])
    assert closing
    assert "." not in closing


def test_an_unknown_key_of_a_message_is_noted(read):
    """``13.jsonl``: a key that no tool knows"""
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello", "trainable": False}]
    (outcome,) = read([{"messages": messages}], CHATML).outcomes
    assert list(outcome.notes) == ["message key trainable ignored"]


def test_rows_of_a_message_tree_are_refused(read):
    """``oasst_rows.jsonl``"""
    rows = [
        {"message_id": "t1", "parent_id": None, "text": "Hi", "role": "prompter", "lang": "en"},
        {"message_id": "r1", "parent_id": "t1", "text": "Hello.", "role": "assistant", "lang": "en"},
    ]
    with pytest.raises(DataError, match="each row is a single message") as caught:
        read(rows, CHATML)
    assert "file of trees" in str(caught.value)


@pytest.mark.parametrize("template", [THINKING, FIELD_ONLY])
def test_inline_reasoning_gives_one_think_block(read, template):
    """``05.jsonl``"""
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>\nI greet.\n</think>\n\nHello"},
    ]
    (outcome,) = read([{"messages": messages}], template).outcomes
    assert trained(outcome) == ["<think>\nI greet.\n</think>\n\nHello<|im_end|>"]


@pytest.mark.parametrize("template", [THINKING, FIELD_ONLY])
def test_an_empty_think_block_is_trained(read, template):
    """``06.jsonl``"""
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<think>\n\n</think>\n\nHello"}]
    (outcome,) = read([{"messages": messages}], template).outcomes
    assert trained(outcome) == ["<think>\n\n</think>\n\nHello<|im_end|>"]


@pytest.mark.parametrize("template", [CHATML, PLAIN])
def test_a_conversation_may_begin_with_the_assistant(read, template):
    """``14.jsonl``"""
    turns = [("gpt", "I am Tom."), ("human", "Hi"), ("gpt", "Bye.")]
    rows = read([{"conversations": [{"from": sender, "value": text} for sender, text in turns]}], template)
    assert [text.strip() for text in trained(rows.outcomes[0])] == ["I am Tom.</s>", "Bye.</s>"]


def test_arguments_of_calls_are_exactly_as_written(read, marked):
    """``20.jsonl``, in a column of JSON, as its file is read"""
    template = (
        "{% for m in messages %}<{{ m.role }}>{% for call in m.tool_calls or [] %}"
        "{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    written = [{"time": "2025-08-01"}, {"time": 1690876800}, {"time": 3, "zone": 3.0, "at": None}]
    messages = [
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]},
        ]
        for arguments in written
    ]
    rows = Dataset.from_dict({"messages": messages}, features=Features({"messages": Json()}))
    texts = [marked(outcome) for outcome in read(rows, template).outcomes]
    assert texts == [f"<user>a</s><assistant>⟦f{json.dumps(arguments)}</s>⟧" for arguments in written]


def test_answers_that_look_like_dates_are_text(read, marked):
    """``22.jsonl``"""
    assert marked(read([{"prompt": "when? ", "completion": "2024-05-01"}]).outcomes[0]) == "when? ⟦2024-05-01⟧"


def test_an_input_of_na_is_an_input(read, marked):
    """``23b.csv``"""
    row = {"instruction": "Which country has this code?", "input": "NA", "output": "Namibia"}
    assert "### Input:\nNA\n\n" in marked(read([row]).outcomes[0])


def test_a_column_that_no_format_uses_is_reported(read):
    """``24a.jsonl`` and ``24b.jsonl``"""
    rows = read(
        [{"prompt": "a ", "completion": "b", "source": None}, {"prompt": "a ", "completion": "b", "source": "x"}]
    )
    assert rows.ignored == {"source"}


@pytest.mark.parametrize("template", [CHATML, PLAIN])
def test_a_completion_of_nothing_but_tool_calls_is_recognised(read, marked, template):
    """``27.jsonl``"""
    call = {"type": "function", "function": {"name": "f", "arguments": {"t": "Ulm"}}}
    written = "{% for c in message.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{{ message.content or '' }}"
    template = template.replace("{{ message['content'] }}{{ eos_token }}", written + "{{ eos_token }}")
    prompt, completion = [{"role": "user", "content": "Weather?"}], [{"role": "assistant", "tool_calls": [call]}]
    (outcome,) = read([{"prompt": prompt, "completion": completion}], template).outcomes
    assert trained(outcome) == ['{"name": "f", "arguments": {"t": "Ulm"}}</s>']
