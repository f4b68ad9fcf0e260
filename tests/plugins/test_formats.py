"""Which data the built-in formats recognise, which characters they train, and what they reject."""

import json
import pickle
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from sftkit.data.documents import Formatted, RowError, Skipped, Span
from sftkit.errors import ConfigError, DataError
from sftkit.plugin.select import Choice, select
from sftkit.testing import CHATML, run_problems, tiny_config, tiny_conversations, tiny_tokenizer
from sftkit_plugins.formats import Formats

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
#: A template that adds nothing after the closing token; `CHATML` adds a line break, as most templates do.
CHATML_WITHOUT_NEWLINE = CHATML.replace("{{ '\n' }}{% endfor %}", "{% endfor %}")
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1\n"},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "2"},
]


def unmarked(template):
    return template.replace("{% generation %}", "").replace("{% endgeneration %}", "")


def formatter_for(rows, template=None, **options):
    dataset = Dataset.from_list(rows)
    plugins, problems = select([Choice("formats", options)])
    assert plugins is not None, problems
    formatter = plugins.hook.make_formatter(
        columns=dataset.features,
        tokenizer=tiny_tokenizer(chat_template=template),
        processor=None,
        config=tiny_config(),
    )
    return formatter, dataset[:]


def documents(rows, template=None, **options):
    formatter, columns = formatter_for(rows, template, **options)
    outcomes = formatter(columns)
    return [outcome.documents[0] if isinstance(outcome, Formatted) else outcome for outcome in outcomes]


def trained(document):
    return [span.text for span in document if span.trained]


def text(document):
    return "".join(span.text for span in document)


def row_error(rows, template=CHATML, **options):
    with pytest.raises(RowError) as caught:
        documents(rows, template, **options)
    return caught.value


# Text, prompt and completion, Alpaca


def test_all_of_a_text_is_trained():
    assert documents([{"text": "Hello"}]) == [(Span("Hello", True),)]


def test_a_named_text_column_overrides_every_format():
    rows = [{"instruction": "a", "output": "b", "story": "Once"}]
    assert documents(rows, text_column="story") == [(Span("Once", True),)]


def test_a_missing_text_column_is_reported_with_the_nearest_name():
    with pytest.raises(DataError, match=r"no such column: 'storey' -> did you mean 'story'"):
        documents([{"story": "Once"}], text_column="storey")


def test_the_completion_is_trained_and_the_prompt_is_not():
    assert documents([{"prompt": "2+2=", "completion": "4"}]) == [(Span("2+2=", False), Span("4", True))]


def test_loss_all_trains_the_prompt_too():
    assert trained(documents([{"prompt": "2+2=", "completion": "4"}], loss="all")[0]) == ["2+2=", "4"]


def test_alpaca_rows_get_the_prompt_with_or_without_input():
    rows = [
        {"instruction": "Add.", "input": "1, 2", "output": "3"},
        {"instruction": "Greet.", "input": "", "output": "Hi"},
        {"instruction": "Greet.", "input": None, "output": "Hi"},
    ]
    with_input, without_input, null_input = documents(rows)
    assert with_input == (
        Span(
            "Below is an instruction that describes a task, paired with an input that provides further context. Write "
            "a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n"
            "### Response:\n",
            False,
        ),
        Span("3", True),
    )
    assert without_input == null_input
    assert text(without_input) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nGreet.\n\n### Response:\nHi"
    )


def test_braces_in_alpaca_data_are_kept():
    assert "{x}" in text(documents([{"instruction": "Print {x} and {}", "output": "{y}"}])[0])


@pytest.mark.skipif(not SHARED.exists(), reason="the real data is not beside the repository")
@pytest.mark.parametrize("name", ["code_alpaca_2k.json", "new_codealpaca.json", "alpaca_en_demo.json"])
def test_the_output_of_real_alpaca_rows_is_trained(name):
    rows = json.loads((SHARED / name).read_text(encoding="utf-8"))[:500]
    assert [trained(document) for document in documents(rows)] == [[row["output"]] for row in rows]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a"}, {"text": None}], "column 'text' is null"),
        ([{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": None}], "column 'completion' is null"),
        ([{"instruction": "a", "output": "b"}, {"instruction": None, "output": "b"}], "column 'instruction' is null"),
    ],
)
def test_a_null_is_reported_with_its_row_and_column(rows, message):
    error = row_error(rows)
    assert (error.index, error.message) == (1, message)
    assert error.fix


def test_empty_rows_are_skipped_with_a_reason():
    assert documents([{"text": ""}, {"text": "a"}])[0] == Skipped("empty text")
    assert documents([{"prompt": "", "completion": ""}])[0] == Skipped("empty text")


# Recognition


@pytest.mark.parametrize(
    ("row", "formatter"),
    [
        ({"messages": TURNS, "text": "a", "prompt": "a", "completion": "b"}, "Chat"),
        ({"prompt": "a", "completion": "b", "instruction": "a", "output": "b", "text": "c"}, "PromptCompletion"),
        ({"instruction": "a", "output": "b", "response": "c", "text": "d"}, "Alpaca"),
        ({"messages": "a text of that name", "text": "a"}, "Text"),
        ({"prompt": [1, 2], "completion": "b", "text": "a"}, "Text"),
    ],
)
def test_the_first_format_with_matching_columns_and_types_is_used(row, formatter):
    assert type(formatter_for([row], CHATML)[0]).__name__ == formatter


def test_unrecognised_data_is_rejected_with_its_columns_and_all_formats():
    with pytest.raises(DataError) as caught:
        documents([{"question": "a", "label": 1, "text": 2}])
    message = str(caught.value)
    assert "question (string), label (int64), text (int64)" in message
    for column in ("messages", "conversations", "prompt", "instruction", "formats:text_column", "formats:formatting"):
        assert column in message


@pytest.mark.parametrize(
    ("row", "loss"),
    [
        ({"text": "a"}, "completion"),
        ({"text": "a"}, "assistant"),
        ({"prompt": "a", "completion": "b"}, "assistant"),
        ({"instruction": "a", "output": "b"}, "assistant"),
        ({"messages": TURNS}, "completion"),
    ],
)
def test_a_loss_that_the_format_does_not_support_is_rejected(row, loss):
    with pytest.raises(ConfigError, match=f"loss={loss} is not possible") as caught:
        documents([row], CHATML, loss=loss)
    (problem,) = caught.value.problems
    assert problem.where == "plugin formats, option loss"
    assert "loss=all" in problem.fix


@pytest.mark.parametrize("choice", [{"turns": "last"}, {"roles": ["user"]}])
@pytest.mark.parametrize("row", [{"text": "a"}, {"prompt": "a", "completion": "b"}])
def test_a_choice_of_turns_without_effect_is_rejected(row, choice):
    with pytest.raises(ConfigError, match=f"{next(iter(choice))} has no effect"):
        formatter_for([row], **choice)
    assert formatter_for([{"messages": TURNS}], CHATML, **choice)


@pytest.mark.parametrize(
    "row", [{"text": "a"}, {"prompt": "a", "completion": "b"}, {"messages": TURNS}, {"prompt": "a", "completion": ""}]
)
def test_loss_all_is_always_possible(row):
    (document,) = documents([row], CHATML, loss="all")
    assert all(span.trained for span in document)


@pytest.mark.parametrize(
    "row",
    [
        {"text": "a"},
        {"prompt": "a", "completion": "b"},
        {"instruction": "a", "output": "b"},
        {"messages": TURNS, "tools": '[{"type": "function"}]'},
    ],
)
def test_formatters_can_be_pickled(row):
    formatter, columns = formatter_for([row], CHATML)
    assert pickle.loads(pickle.dumps(formatter))(columns) == formatter(columns)


# Conversations


@pytest.mark.parametrize("template", [CHATML, unmarked(CHATML)], ids=["marked", "unmarked"])
def test_content_and_closing_token_of_assistant_turns_are_trained(template):
    (document,) = documents([{"messages": TURNS}], template)
    assert trained(document) == ["1\n</s>", "2</s>"]
    assert text(document).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n")


@pytest.mark.parametrize("template", [CHATML, CHATML_WITHOUT_NEWLINE])
@pytest.mark.parametrize(
    "messages",
    [
        *(row["messages"] for row in tiny_conversations(2)),
        TURNS,
        [*TURNS[:3], {"role": "assistant", "content": "again"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": " \n"}, {"role": "user", "content": "b"}],
        [{"role": "assistant", "content": "I begin."}],
    ],
)
def test_templates_with_and_without_markers_train_the_same_characters(template, messages):
    marked = documents([{"messages": messages}], template)
    assert marked == documents([{"messages": messages}], unmarked(template))


def test_a_chat_template_writes_its_own_special_tokens():
    template = "{{ bos_token }}" + CHATML
    formatter, columns = formatter_for([{"messages": TURNS}], template)
    assert not formatter.adds_special_tokens
    assert text(formatter(columns)[0]).startswith("<s><|im_start|>system")


def test_the_encoder_adds_special_tokens_to_text_formats():
    assert formatter_for([{"text": "a"}])[0].adds_special_tokens


def test_whitespace_that_closes_a_turn_is_trained():
    template = (
        "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    (document,) = documents([{"messages": TURNS[1:2] + TURNS[4:]}], template)
    assert trained(document) == ["2\n"]


def test_sharegpt_is_read_like_messages():
    roles = {"system": "system", "user": "human", "assistant": "gpt"}
    rows = [{"conversations": [{"from": roles[turn["role"]], "value": turn["content"]} for turn in TURNS]}]
    assert documents(rows, CHATML) == documents([{"messages": TURNS}], CHATML)


def test_conversations_of_role_and_content_are_read_like_messages():
    assert documents([{"conversations": TURNS}], CHATML) == documents([{"messages": TURNS}], CHATML)


def test_sharegpt_calls_and_observations_become_tool_calls_and_results():
    template = (
        "{% for m in messages %}[{{ m.role }}]{% generation %}{{ m.content }}"
        "{% for call in m.tool_calls %}{{ call.function.name }}({{ call.function.arguments | tojson }})"
        "{% endfor %}{% endgeneration %}{% endfor %}"
    )
    conversation = [
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Ulm"}}'},
        {"from": "observation", "value": "rain"},
        {"from": "gpt", "value": "It rains."},
    ]
    (document,) = documents([{"conversations": conversation}], template)
    assert text(document) == '[user]Weather?[assistant]weather({"city": "Ulm"})[tool]rain[assistant]It rains.'


def test_nulls_that_arrow_adds_do_not_reach_the_template():
    template = (
        "{% for m in messages %}{% generation %}{{ m | tojson }}{% endgeneration %}{% endfor %}{{ tools | tojson }}"
    )
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
    other = {"role": "assistant", "tool_calls": [{"function": {"name": "g", "arguments": {"y": 2}}}]}
    tools = [
        {"function": {"name": "f", "parameters": {"x": "int"}}},
        {"function": {"name": "g", "parameters": {"y": "int"}}},
    ]
    user = {"role": "user", "content": "go"}
    (document,) = documents([{"messages": [user, call, other], "tools": tools}], template)
    assert text(document) == "".join(map(json.dumps, [user, call, other])) + json.dumps(tools)


CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": None}}}
CALL_AS_TEXT = {"type": "function", "function": {"name": "f", "arguments": '{"x": null}'}}


@pytest.mark.parametrize("calls", [[CALL_AS_TEXT], [json.dumps(CALL)], json.dumps([CALL]), [CALL_AS_TEXT["function"]]])
def test_tool_calls_may_be_json_text_and_keep_their_nulls(calls):
    template = (
        "{% for m in messages %}[{{ m.role }}]{% generation %}{{ m.content }}{% for call in m.tool_calls %}"
        "{{ call.function.name }}{{ call.function.arguments | tojson }}{% endfor %}{% endgeneration %}{% endfor %}"
    )
    rows = [{"messages": [{"role": "user", "content": "go"}, {"role": "assistant", "tool_calls": calls}]}]
    (document,) = documents(rows, template)
    assert text(document).endswith('{"x": null}')


@pytest.mark.parametrize("calls", ["{", [3], [{"name": "f", "arguments": "{"}], [{"name": "f", "arguments": "[]"}]])
def test_unreadable_tool_calls_are_reported_with_their_message(calls):
    messages = [{"role": "user", "content": "go"}, {"role": "assistant", "content": "", "tool_calls": calls}]
    error = row_error([{"messages": messages}])
    assert "message 2: cannot read the tool calls" in error.message


@pytest.mark.parametrize("as_text", [json.dumps, lambda tools: [json.dumps(tool) for tool in tools]])
def test_tools_may_be_json_text(as_text):
    template = CHATML + "{% if tools %}{{ tools[0].function.name }}{% endif %}"
    tools = [{"name": "weather", "parameters": {"type": "object", "properties": {}}}]
    (document,) = documents([{"messages": TURNS, "tools": as_text(tools)}], template)
    assert text(document).endswith("weather")


def test_rows_with_tools_use_the_template_named_tool_use():
    template = {"default": CHATML, "tool_use": "TOOLS{{ tools | tojson }}" + CHATML}
    rows = [{"messages": TURNS, "tools": '[{"name": "f"}]'}, {"messages": TURNS, "tools": None}]
    starts = [text(document)[:5] for document in documents(rows, template)]
    assert starts == ["TOOLS", "<|im_"]


def test_content_in_parts_is_joined():
    parts = [{"type": "text", "text": "O"}, {"type": "text", "text": "ne?"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": "1"}]}]
    plain = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "1"}]
    assert documents([{"messages": messages}], CHATML) == documents([{"messages": plain}], CHATML)


def test_a_conversation_without_an_assistant_turn_is_skipped():
    rows = [{"messages": TURNS[:2]}, {"messages": []}]
    assert documents(rows, CHATML) == [Skipped("no assistant turn"), Skipped("empty conversation")]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "column 'messages' is null, not a list of messages"),
        ([{"role": "user", "content": None}], "column 'messages', message 1 (user) has no content"),
        ([TURNS[0], {"role": "narrator", "content": "a"}], "column 'messages', message 2: unknown role 'narrator'"),
        ([{"role": None, "content": "a"}], "column 'messages', message 1 has no role"),
        ([None], "column 'messages', message 1 is null, not a mapping"),
    ],
)
def test_an_invalid_message_is_reported_with_its_place_and_a_fix(messages, message):
    error = row_error([{"messages": TURNS}, {"messages": messages}])
    assert (error.index, error.message) == (1, message)
    assert error.fix


def test_an_unknown_sharegpt_sender_is_reported():
    error = row_error([{"conversations": [{"from": "narrator", "value": "a"}]}])
    assert "unknown role 'narrator'" in error.message
    assert "human" in error.fix


def test_content_parts_other_than_text_are_reported():
    parts = [{"type": "image", "text": None}]
    assert "not text: image" in row_error([{"messages": [{"role": "user", "content": parts}]}]).message


def test_conversations_need_a_chat_template():
    with pytest.raises(ConfigError, match=r"no chat template -> set a chat template with -p chatml"):
        documents([{"messages": TURNS}])


def test_a_template_that_leaves_out_turns_is_rejected():
    dropping = unmarked(CHATML).replace("in messages %}", "in messages[-2:] %}")
    assert "leaves out the content of message 1 (role system)" in row_error([{"messages": TURNS}], dropping).message


def test_a_generation_prompt_missing_from_the_conversation_is_rejected():
    other_prompt = unmarked(CHATML).replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>bot\n{% endif %}")
    error = row_error([{"messages": TURNS}], other_prompt)
    assert "'<|im_start|>bot\\n'" in error.message
    assert "{% generation %}" in error.fix


def test_markers_inside_a_macro_are_found():
    in_macro = (
        "{% macro turn(m) %}<{{ m.role }}>{% generation %}{{ m.content }}</s>{% endgeneration %}{% endmacro %}"
        "{% for m in messages %}{{ turn(m) }}{% endfor %}"
    )
    messages = [{"role": "user", "content": "Where?"}, {"role": "assistant", "content": "In the garden."}]
    (document,) = documents([{"messages": messages}], in_macro)
    assert trained(document) == ["In the garden.</s>"]


def test_an_exception_in_the_template_is_reported_with_the_row():
    refusing = "{{ raise_exception('roles must alternate') }}{% generation %}{% endgeneration %}"
    error = row_error([{"messages": TURNS}], refusing)
    assert (error.index, "roles must alternate" in error.message) == (0, True)


# Prompt and completion as messages


@pytest.mark.parametrize("template", [CHATML, unmarked(CHATML)], ids=["marked", "unmarked"])
def test_a_completion_of_messages_is_trained_after_the_generation_prompt(template):
    (document,) = documents([{"prompt": TURNS[:4], "completion": TURNS[4:]}], template)
    assert trained(document) == ["2</s>"]
    assert text(document) == text(documents([{"messages": TURNS}], template)[0])


def test_loss_assistant_trains_the_assistant_turns_of_the_prompt_too():
    (document,) = documents([{"prompt": TURNS[:4], "completion": TURNS[4:]}], CHATML, loss="assistant")
    assert trained(document) == ["1\n</s>", "2</s>"]


def test_a_completion_that_begins_with_a_user_turn_is_rejected():
    error = row_error([{"prompt": TURNS[:1], "completion": TURNS[1:]}])
    assert "begins with a message of the role user" in error.message


# The user's own function

QA = [{"q": f"question {number}", "a": f"answer {number}"} for number in range(5)]


def qa_batch(example):
    return [f"### Q: {example['q'][i]}\n### A: {example['a'][i]}" for i in range(len(example["q"]))]


def qa_row(example):
    return f"### Q: {example['q']}\n### A: {example['a']}"


def qa_spans(example):
    return [(example["q"], False), (" ", False), (example["a"], True)]


def qa_span_batch(examples):
    return [[Span(q, False), Span(a, True)] for q, a in zip(examples["q"], examples["a"], strict=True)]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("function", [qa_batch, qa_row])
def test_functions_of_rows_and_of_batches_are_distinguished(function, count):
    rows = QA[:count]
    assert documents(rows, formatting=function) == [(Span(qa_row(row), True),) for row in rows]


@pytest.mark.parametrize("count", [1, 3, 5])
def test_a_function_may_mark_what_is_trained(count):
    assert [trained(document) for document in documents(QA[:count], formatting=qa_spans)] == [
        [row["a"]] for row in QA[:count]
    ]
    assert documents(QA[:count], formatting=qa_span_batch) == [
        [Span(row["q"], False), Span(row["a"], True)] for row in QA[:count]
    ]


def test_the_kind_of_a_function_is_determined_once():
    calls = []

    def counting(example):
        calls.append(example)
        return qa_row(example)

    formatter, columns = formatter_for(QA, formatting=counting)
    formatter(columns)
    first = len(calls)
    formatter(columns)
    assert len(calls) - first == len(QA)


def test_a_named_function_is_imported_from_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "my_prompts.py").write_text("def shout(row):\n    return row['q'].upper()\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    formatter, columns = formatter_for(QA[:1], formatting="my_prompts:shout")
    assert formatter(columns) == [(Span("QUESTION 0", True),)]
    assert pickle.loads(pickle.dumps(formatter))(columns) == formatter(columns)


def test_a_used_formatter_pickles_to_the_same_bytes_as_a_new_one():
    formatter, columns = formatter_for(QA, formatting=qa_row)
    fresh = pickle.dumps(formatter)
    formatter(columns)
    assert pickle.dumps(formatter) == fresh


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module_here:f", "ModuleNotFoundError"),
        ("json:dump_all", "json has no 'dump_all'"),
        ("json", "is not of the form module:function"),
        ("json:__doc__", "not a function"),
    ],
)
def test_a_function_that_cannot_be_imported_is_a_configuration_error(name, message):
    (problem,) = run_problems(Formats(formatting=name))
    assert message in problem.what
    assert problem.key == ("plugins", "formats", "formatting")
    assert problem.fix


@pytest.mark.parametrize(
    "function",
    [
        lambda row: {"text": qa_row(row)},
        lambda rows: ["only one"],
        lambda rows: ["one", "two"],
        lambda row: [row["q"], row["a"]],
    ],
)
def test_a_function_that_returns_no_documents_is_rejected(function):
    with pytest.raises(DataError, match=r"the columns are: q, a") as caught:
        documents(QA, formatting=function)
    assert "for one row" in str(caught.value)


def test_an_exception_in_a_function_of_rows_names_the_row():
    def fragile(row):
        return "fine" if row["a"] != "answer 3" else row["missing"]

    error = row_error(QA, formatting=fragile)
    assert error.index == 3
    assert "fragile raised KeyError: 'missing'" in error.message
    assert "q, a" in error.fix


def test_an_exception_in_a_function_of_batches_names_the_row():
    def fragile(rows):
        return [f"{1 / (answer != 'answer 4')}" for answer in rows["a"]]

    error = row_error(QA, formatting=fragile)
    assert (error.index, "ZeroDivisionError" in error.message) == (4, True)


def test_a_misspelt_column_is_reported_with_all_columns():
    error = row_error(QA, formatting=lambda row: row["question"])
    assert "KeyError: 'question'" in error.message
    assert error.fix == "the columns are: q, a"


def test_a_batch_of_another_length_is_rejected():
    def dropping(rows):
        return [q for q in rows["q"] if q != "question 4"]

    with pytest.raises(DataError, match=r"a list of 4 \(str\) for a batch of 5 rows"):
        documents(QA, formatting=dropping)


@pytest.mark.parametrize("nothing", [None, "", []])
def test_a_row_for_which_the_function_returns_nothing_is_skipped(nothing):
    found = documents(QA, formatting=lambda row: nothing if row["a"] == "answer 1" else qa_row(row))
    assert [isinstance(document, Skipped) for document in found] == [False, True, False, False, False]
    assert found[1] == Skipped("the formatting function returned nothing")


def test_loss_completion_is_rejected_for_a_function_that_returns_text():
    with pytest.raises(ConfigError, match="loss=completion is not possible"):
        documents(QA, formatting=qa_row, loss="completion")


def test_loss_all_trains_unmarked_spans_too():
    assert all(span.trained for span in documents(QA, formatting=qa_spans, loss="all")[0])
