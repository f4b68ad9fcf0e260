"""Columns beside a conversation or a text, columns under other names, and columns that are ignored."""

import json

import pytest
from datasets import Dataset, Features, Json

from sftkit.data.documents import RowError
from sftkit.errors import ConfigError, DataError
from sftkit.testing import CHATML, run_problems
from sftkit_plugins.formats import Formats

ASK, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}
SYSTEM = {"role": "system", "content": "Be brief."}
EARLIER = [{"role": "user", "content": "How is summer?"}, {"role": "assistant", "content": "Warm."}]
HISTORY = [["How is summer?", "Warm."]]
CHATS = {
    "messages": {"messages": [ASK, ANSWER]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]},
    "prompt and completion": {"prompt": [ASK], "completion": [ANSWER]},
    "question and answer": {"question": "Hi", "answer": "Hello."},
    "exchanges": {"conversation": [{"human": "Hi", "assistant": "Hello."}]},
    "texts": {"conversations": ["Hi", "Hello."]},
    "gemini": {
        "contents": [{"role": "user", "parts": [{"text": "Hi"}]}, {"role": "model", "parts": [{"text": "Hello."}]}]
    },
}
TOOL = {
    "name": "weather",
    "description": "Weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
WRAPPED = {"type": "function", "function": TOOL}


def chats(test):
    return pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS)(test)


# System message and earlier turns in conversations


@chats
@pytest.mark.parametrize("name", ["system", "system_prompt", "systemInstruction", "system_instruction"])
@pytest.mark.parametrize(
    "value", ["Be brief.", [{"type": "text", "text": "Be brief."}], {"parts": [{"text": "Be brief."}]}]
)
def test_a_system_column_is_the_first_message_in_every_format(read, chat, name, value):
    rows = read([{**chat, name: value}], CHATML)
    assert rows.conversations[0].messages == [SYSTEM, ASK, ANSWER]
    assert rows.ignored == set()


@pytest.mark.parametrize("value", ["", None])
def test_an_empty_system_column_adds_no_message(read, value):
    rows = read([{**CHATS["messages"], "system": value}, {**CHATS["messages"], "system": "Be brief."}], CHATML)
    assert rows.conversations[0].messages == [ASK, ANSWER]


def test_a_system_message_wins_over_the_column_which_is_noted_if_it_differs(read):
    row = {"messages": [{**SYSTEM, "content": "You are a pirate."}, ASK, ANSWER], "system": "You are a helper."}
    (conversation,) = read([row], CHATML).conversations
    assert conversation.messages == row["messages"]
    assert conversation.notes == ["column system ignored where the messages have a system message"]
    (same,) = read([{**row, "system": "You are a pirate."}], CHATML).conversations
    assert same.notes == ()


@chats
@pytest.mark.parametrize(
    "value", [HISTORY, json.dumps(HISTORY), str(HISTORY), EARLIER], ids=["list", "json", "python", "messages"]
)
def test_a_history_column_holds_earlier_turns(read, chat, value):
    rows = read([{**chat, "system": "Be brief.", "history": value}], CHATML)
    (conversation,) = rows.conversations
    assert conversation.messages == [SYSTEM, *EARLIER, ASK, ANSWER]
    assert rows.ignored == set()


def test_earlier_turns_belong_to_the_prompt_of_a_completion(read):
    row = {**CHATS["prompt and completion"], "system": "Be brief.", "history": HISTORY}
    (conversation,) = read([row], CHATML).conversations
    assert conversation.prompt == 4


@pytest.mark.parametrize("value", ["born in 1900", [["only a question"]], [["a", None]]])
def test_a_history_that_is_none_is_refused(read, value):
    rows = read([{**CHATS["messages"], "history": value}], CHATML)
    with pytest.raises(RowError, match="column 'history'") as caught:
        rows.formatter(rows.columns)
    assert "rename" in caught.value.fix


# System message and earlier turns in text


def test_alpaca_has_the_system_message_before_its_prompt(read, marked):
    (plain,) = read([{"instruction": "Write on", "input": "rain", "output": "Rain falls."}]).outcomes
    rows = read([{"system": "You are a poet.", "instruction": "Write on", "input": "rain", "output": "Rain falls."}])
    (outcome,) = rows.outcomes
    assert marked(outcome) == "You are a poet.\n\n" + marked(plain)
    assert rows.ignored == set()


def test_alpaca_has_earlier_turns_as_blocks_with_trained_answers(read, marked):
    rows = read([{"instruction": "And in winter?", "input": "", "output": "Snow.", "history": HISTORY}])
    (outcome,) = rows.outcomes
    start = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    assert marked(outcome) == (
        f"{start}\n\n### Instruction:\nHow is summer?\n\n### Response:\n⟦Warm.</s>⟧"
        "\n\n### Instruction:\nAnd in winter?\n\n### Response:\n⟦Snow.⟧"
    )
    assert rows.ignored == set()


def test_prompt_and_completion_have_both_too(read, marked):
    row = {"prompt": "Q: b A:", "completion": " 2", "system": "Count.", "history": [["Q: a A:", " 1"]]}
    (outcome,) = read([row]).outcomes
    assert marked(outcome) == "Count.\n\nQ: a A:⟦ 1</s>⟧\n\nQ: b A:⟦ 2⟧"


def test_a_history_of_other_roles_has_no_place_in_text(read):
    rows = read([{"prompt": "a", "completion": "b", "history": [SYSTEM, ASK]}])
    with pytest.raises(RowError, match="not a list of questions with answers"):
        rows.formatter(rows.columns)


# Tools


@pytest.mark.parametrize(
    "tools",
    [
        [WRAPPED],
        [TOOL],
        TOOL,
        json.dumps([TOOL]),
        [json.dumps(TOOL)],
        [{"type": "function", **TOOL}],
        [{"name": "weather", "description": "Weather", "input_schema": TOOL["parameters"]}],
        [{"toolSpec": {"name": "weather", "description": "Weather", "inputSchema": {"json": TOOL["parameters"]}}}],
        [
            {
                "functionDeclarations": [
                    {**TOOL, "parameters": {"type": "OBJECT", "properties": {"city": {"type": "STRING"}}}}
                ]
            }
        ],
    ],
)
@pytest.mark.parametrize("column", ["tools", "functions"])
def test_tools_in_every_form_become_what_servers_send(read, tools, column):
    rows = read([{**CHATS["messages"], column: tools}], CHATML)
    assert rows.conversations[0].tools == [WRAPPED]
    assert rows.ignored == set()


@chats
def test_every_conversation_can_have_tools(read, chat):
    assert read([{**chat, "tools": [TOOL]}], CHATML).conversations[0].tools == [WRAPPED]


@pytest.mark.parametrize("tools", ["", "[]", None])
def test_no_tools_are_none(read, tools):
    rows = read([{**CHATS["messages"], "tools": tools}, {**CHATS["messages"], "tools": json.dumps([TOOL])}], CHATML)
    assert rows.conversations[0].tools is None


def test_tools_in_a_column_of_json_keep_their_nulls(read):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"default": None}}}
    columns = {"messages": [[ASK, ANSWER]], "tools": [[tool]]}
    rows = Dataset.from_dict(columns, features=Features({"messages": Json(), "tools": Json()}))
    assert read(rows, CHATML).conversations[0].tools == [tool]


# Variables of the chat template


def test_variables_of_a_row_reach_the_template_without_nulls(read):
    template = CHATML + "{% if enable_thinking %}{% endif %}{{ custom }}"
    given = {"enable_thinking": False, "custom": None, "python_tools": ["a"]}
    for value in (given, json.dumps(given)):
        rows = read([{**CHATS["messages"], "chat_template_kwargs": value}], template)
        (conversation,) = rows.conversations
        assert conversation.variables == {"enable_thinking": False}
        assert conversation.notes == ["chat_template_kwargs python_tools ignored"]
        assert rows.ignored == set()


def test_documents_are_used_if_the_template_reads_them(read):
    documents = [{"title": "a", "text": "b"}]
    row = {**CHATS["messages"], "documents": documents}
    assert read([row], CHATML + "{{ documents }}").conversations[0].variables == {"documents": documents}
    assert read([row], CHATML).ignored == {"documents"}


# Columns that are ignored


@pytest.mark.parametrize(
    ("row", "ignored"),
    [
        ({"messages": [ASK, ANSWER], "text": "a", "prompt": "b", "source": "c"}, {"text", "prompt", "source"}),
        ({"messages": [ASK, ANSWER], "chosen": [ASK], "rejected": [ASK]}, {"chosen", "rejected"}),
        ({"question": "a", "answer": "b", "category": "c"}, {"category"}),
        ({"instruction": "a", "output": "b", "text": "c", "tools": "d"}, {"text", "tools"}),
        ({"prompt": "a", "completion": "b", "instruction": "c", "output": "d"}, {"instruction", "output"}),
        ({"text": "a", "system": "b", "label": True}, {"system", "label"}),
        ({"messages": [ASK, ANSWER], "system": 1, "functions": "[]", "tools": "[]"}, {"system", "functions"}),
    ],
)
def test_columns_of_other_formats_are_reported_as_ignored(read, row, ignored):
    assert read([row], CHATML).ignored == ignored


def test_reasoning_beside_an_answer_is_ignored_only_without_a_chat_template(read):
    row = {"input": "2+2?", "reasoning_content": "Add.", "output": "4"}
    assert read([row]).ignored == {"reasoning_content"}
    rows = read([row], CHATML)
    assert rows.ignored == set()
    assert rows.conversations[0].messages[1]["reasoning_content"] == "Add."


# Columns under other names


def test_chosen_names_stand_for_those_of_a_format(read, marked):
    rows = read([{"q": "2+2=", "a": "4", "prompt": "other"}], columns={"prompt": "q", "completion": "a"})
    assert [marked(outcome) for outcome in rows.outcomes] == ["2+2=⟦4⟧"]
    assert rows.ignored == {"prompt"}


def test_names_decide_whether_a_pair_is_a_conversation(read, marked):
    row = {"q": "Hi", "a": "Hello."}
    (literal,) = read([row], CHATML, columns={"prompt": "q", "completion": "a"}).outcomes
    (asked,) = read([row], CHATML, columns={"question": "q", "answer": "a"}).outcomes
    assert marked(literal) == "Hi⟦Hello.⟧"
    assert marked(asked).startswith("<|im_start|>user\nHi<|im_end|>")


def test_columns_beside_a_conversation_can_have_other_names(read):
    row = {"chat": [ASK, ANSWER], "role_play": "Be brief."}
    rows = read([row], CHATML, columns={"messages": "chat", "system": "role_play"})
    assert rows.conversations[0].messages == [SYSTEM, ASK, ANSWER]
    assert rows.ignored == set()


@pytest.mark.parametrize(
    ("columns", "problems"),
    [
        ({"prompt": "qq", "completion": "a"}, [("no such column: 'qq'", "did you mean 'q'?")]),
        ({"promt": "q"}, [("no format has a column 'promt'", "did you mean 'prompt'?")]),
        ({"prompt": "q", "completion": "q"}, [("a column is named twice", "name each column once")]),
    ],
)
def test_names_that_do_not_exist_are_refused_with_the_nearest(read, columns, problems):
    with pytest.raises(ConfigError) as caught:
        read([{"q": "a", "a": "b"}], columns=columns)
    assert [(problem.what, problem.fix) for problem in caught.value.problems] == problems


def test_errors_in_rows_use_the_names_of_the_data(read):
    rows = read([{"q": "a", "a": "b"}, {"q": "a", "a": None}], columns={"prompt": "q", "completion": "a"})
    with pytest.raises(RowError, match="column 'a' is null"):
        rows.formatter(rows.columns)


def test_chosen_names_have_no_effect_with_a_function():
    (problem,) = run_problems(Formats(formatting=str.upper, columns={"prompt": "q"}))
    assert problem.what == "columns has no effect with formatting"


def test_capitalised_names_stand_for_known_ones(read, marked):
    rows = read([{"Question": "What is Ulm?", "Answer": "A town.", "METADATA": "x"}])
    assert [marked(outcome) for outcome in rows.outcomes] == ["What is Ulm?\n⟦A town.⟧"]
    assert rows.ignored == {"METADATA"}


def test_a_choice_of_one_column_overrides_a_refusal(read, marked):
    rows = read([{"prompt": "Sky?", "chosen": " Blue.", "rejected": " Green."}], columns={"completion": "chosen"})
    assert [marked(outcome) for outcome in rows.outcomes] == ["Sky?⟦ Blue.⟧"]
    assert rows.ignored == {"rejected"}


def test_text_beside_a_prompt_needs_a_choice(read):
    row = {"prompt": "Write about rivers.", "text": "Rivers flow."}
    with pytest.raises(DataError, match="columns prompt and text"):
        read([row])
    assert read([row], columns={"text": "text"}).ignored == {"prompt"}
    assert read([row], columns={"prompt": "prompt", "completion": "text"}).ignored == set()
