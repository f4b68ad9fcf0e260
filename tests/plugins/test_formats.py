"""Every documented format is recognised, and trains what it implies."""

from __future__ import annotations

import pickle

import pytest
from datasets import Dataset

from sftkit.data.documents import RowError, Skipped
from sftkit.errors import SftkitError
from sftkit.registry import select
from sftkit.testing import CHATML, tiny_config, tiny_tokenizer

PLAIN = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
]


def formatter_for(rows, template=CHATML, **data):
    dataset = Dataset.from_list(rows)
    plugins, problems = select([])
    assert not problems
    tokenizer = tiny_tokenizer(chat_template=template)
    formatter = plugins.hook.make_formatter(
        columns=dataset.features, tokenizer=tokenizer, config=tiny_config(data=data)
    )
    return formatter, dataset[:]


def spans(rows, template=CHATML, **data):
    """Each document as its whole text and its trained text."""
    formatter, columns = formatter_for(rows, template, **data)
    return [
        document
        if isinstance(document, Skipped)
        else ("".join(s.text for s in document), "|".join(s.text for s in document if s.trained))
        for document in formatter(columns)
    ]


def batched(rows):
    return [f"Q {q} A {a}" for q, a in zip(rows["q"], rows["a"], strict=True)]


def one_row(row):
    return f"Q {row['q'].strip()} A {row['a']}"


def own_spans(row):
    return [(f"Q {row['q']}", False), (f" A {row['a']}", True)]


def two_strings(rows):
    return ["a", "b"]


def test_text_is_trained_whole():
    assert spans([{"text": "Hello."}]) == [("Hello.", "Hello.")]
    assert spans([{"body": "Hello."}], text_column="body") == [("Hello.", "Hello.")]


def test_prompt_and_completion_train_the_completion():
    assert spans([{"prompt": "Q:", "completion": " A"}]) == [("Q: A", " A")]
    ((text, trained),) = spans([{"prompt": "Q:", "completion": " A"}], loss="all")
    assert trained.replace("|", "") == text == "Q: A"


def test_alpaca_rows_train_the_output():
    (with_input, without) = spans(
        [
            {"instruction": "Add.", "input": "1 2", "output": "3"},
            {"instruction": "Say hi.", "input": "", "output": "hi"},
        ]
    )
    assert with_input[1] == "3"
    assert "### Instruction:\nAdd." in with_input[0]
    assert "### Input:\n1 2" in with_input[0]
    assert "### Input" not in without[0]
    assert without[0].endswith("### Response:\nhi")


@pytest.mark.parametrize("template", [CHATML, PLAIN], ids=["with markers", "without markers"])
def test_messages_train_the_assistant_turns_and_their_closing_tokens(template):
    ((text, trained),) = spans([{"messages": TURNS}], template)
    assert trained == "Hello!<|im_end|>|4<|im_end|>"
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n")


def test_sharegpt_conversations_are_messages_under_other_names():
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    rows = [{"conversations": [{"from": names[turn["role"]], "value": turn["content"]} for turn in TURNS]}]
    assert spans(rows) == spans([{"messages": TURNS}])


def test_prompt_and_completion_may_be_message_lists():
    ((text, trained),) = spans([{"prompt": TURNS[:4], "completion": TURNS[4:]}])
    assert trained.startswith("4<|im_end|>")
    assert text == spans([{"messages": TURNS}])[0][0]


def test_all_of_a_conversation_can_be_trained():
    ((text, trained),) = spans([{"messages": TURNS}], loss="all")
    assert trained.replace("|<|", "<|").replace("|", "") == text.replace("|", "")


def test_a_conversation_without_an_assistant_turn_is_skipped():
    (found,) = spans([{"messages": TURNS[:2]}])
    assert isinstance(found, Skipped)


@pytest.mark.parametrize("function", [batched, one_row])
def test_a_users_function_may_work_on_batches_or_on_rows(function):
    rows = [{"q": str(n), "a": str(n + 1)} for n in range(5)]
    assert [text for text, _ in spans(rows, formatting=function)] == [f"Q {n} A {n + 1}" for n in range(5)]


def test_a_users_function_may_return_spans():
    assert spans([{"q": "x", "a": "y"}], formatting=own_spans) == [("Q x A y", " A y")]


def test_a_users_function_is_named_by_module(tmp_path, monkeypatch):
    (tmp_path / "my_formatting_module.py").write_text("def f(row):\n    return row['q'] + '!'\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert spans([{"q": "x"}], formatting="my_formatting_module:f") == [("x!", "x!")]


@pytest.mark.parametrize(
    ("rows", "data"),
    [
        ([{"text": "x"}], {"loss": "completion"}),
        ([{"text": "x"}], {"loss": "assistant"}),
        ([{"prompt": "x", "completion": "y"}], {"loss": "assistant"}),
        ([{"instruction": "x", "output": "y"}], {"loss": "assistant"}),
        ([{"messages": TURNS}], {"loss": "completion"}),
        ([{"foo": "x"}], {}),
        ([{"q": "x"}], {"formatting": "no_such_module:f"}),
    ],
)
def test_impossible_choices_are_refused_with_a_mend(rows, data):
    with pytest.raises(SftkitError) as raised:
        spans(rows, **data)
    assert raised.value.problems[0].mend


def test_a_function_that_returns_neither_text_nor_spans_is_refused():
    with pytest.raises((SftkitError, RowError)):
        spans([{"q": "x"}] * 4, formatting=two_strings)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": None}, {"role": "assistant", "content": "x"}],
        [{"role": "owl", "content": "x"}, {"role": "assistant", "content": "x"}],
    ],
)
def test_a_row_of_a_bad_shape_is_told_by_its_index(messages):
    with pytest.raises(RowError) as raised:
        spans([{"messages": TURNS[:3]}, {"messages": messages}])
    assert raised.value.index == 1
    assert raised.value.mend


def test_a_template_that_rewrites_history_is_refused_rather_than_guessed():
    drops = PLAIN.replace("{% for message in messages %}", "{% for message in messages[-2:] %}")
    with pytest.raises(RowError):
        spans([{"messages": TURNS}], drops)


@pytest.mark.parametrize("rows", [[{"text": "x"}], [{"messages": TURNS}], [{"prompt": "x", "completion": "y"}]])
def test_formatters_can_be_pickled(rows):
    formatter, columns = formatter_for(rows)
    assert pickle.loads(pickle.dumps(formatter))(columns) == formatter(columns)
