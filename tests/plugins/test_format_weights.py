"""Weights of messages and rows."""

from __future__ import annotations

import logging
import pickle

import pytest
from datasets import Features, Json, Value

from sftkit import DataError
from sftkit.data.documents import RowError
from sftkit.testing import CHATML, tiny_config, tiny_tokenizer
from sftkit_plugins.completion_only import CompletionOnly, ResponsesOnly
from sftkit_plugins.formats import Formats
from sftkit_plugins.formats.chat import Chat
from sftkit_plugins.formats.instruct import Alpaca, PromptCompletion, Text
from sftkit_plugins.formats.messages import MessagesReader
from sftkit_plugins.formats.recognise import recognise
from sftkit_plugins.formats.user_function import UserFunction

PLAIN = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
TALK = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "2"},
]


def spans(messages, template=CHATML, row_weight=None, **options):
    special = {"eos_token": "<|im_end|>"}
    weighted = row_weight is not None
    chat = Chat(
        reader=MessagesReader(("messages",)), template=template, special_tokens=special, weighted=weighted, **options
    )
    (document,) = chat({"messages": [messages], "weight": [row_weight]})
    return [(span.text, span.weight) for span in document if span.trained]


def changed(number, **keys):
    return [{**message, **keys} if at == number else message for at, message in enumerate(TALK)]


@pytest.mark.parametrize("template", [CHATML, PLAIN])
def test_a_turn_has_the_weight_of_its_message(template):
    assert spans(changed(1, weight=0.5), template) == [("1<|im_end|>", 0.5), ("2<|im_end|>", 1.0)]
    assert spans(changed(3, weight=3), template) == [("1<|im_end|>", 1.0), ("2<|im_end|>", 3.0)]


@pytest.mark.parametrize("template", [CHATML, PLAIN])
def test_a_weight_trains_a_turn_of_another_role(template):
    assert spans(changed(0, weight=0.5), template)[0] == ("One?<|im_end|>", 0.5)


def test_weight_one_changes_nothing_and_weight_zero_does_not_train():
    assert spans(changed(1, weight=1)) == spans(changed(1, weight=1.0)) == spans(TALK)
    assert spans(changed(1, weight=0)) == spans(changed(1, weight=0.0)) == spans(changed(1, train=False))
    assert spans(changed(1, weight=True)) == spans(changed(1, train=True)) == spans(TALK)


def test_a_message_may_have_both_keys_if_they_agree():
    assert spans(changed(1, train=True, weight=0.5)) == spans(changed(1, weight=0.5))
    assert spans(changed(1, train=False, weight=0)) == spans(changed(1, train=False))


@pytest.mark.parametrize("keys", [{"train": False, "weight": 0.5}, {"train": True, "weight": 0}])
def test_a_message_that_contradicts_itself_is_rejected(keys):
    with pytest.raises(RowError, match=r"message 2: train is .*, but weight is"):
        spans(changed(1, **keys))


@pytest.mark.parametrize("weight", [-0.5, float("nan"), float("inf"), "0.5", [1]])
def test_an_invalid_weight_of_a_message_is_rejected_with_a_fix(weight):
    with pytest.raises(RowError, match="message 2: weight is") as caught:
        spans(changed(1, weight=weight))
    assert "0 does not train, 1 is the usual weight" in caught.value.fix


def test_the_key_train_does_not_accept_weights():
    with pytest.raises(RowError, match=r"train is 0\.5") as caught:
        spans(changed(1, train=0.5))
    assert "use the key weight" in caught.value.fix


@pytest.mark.parametrize("loss", ["all", "completion"])
def test_a_weight_without_effect_is_rejected(loss):
    with pytest.raises(RowError, match=f"the key weight, which has no effect with loss={loss}"):
        spans(changed(1, weight=0.5), loss=loss)


def test_the_weights_of_row_and_message_are_multiplied():
    assert spans(changed(1, weight=0.5), row_weight=4) == [("1<|im_end|>", 2.0), ("2<|im_end|>", 4.0)]


@pytest.mark.parametrize(
    ("formatter", "columns"),
    [
        (Text(weighted=True), {"text": ["a", "a", "a"]}),
        (PromptCompletion(weighted=True), {"prompt": ["a"] * 3, "completion": ["b"] * 3}),
        (Alpaca(weighted=True), {"instruction": ["a"] * 3, "output": ["b"] * 3}),
    ],
)
def test_rows_have_their_weights_and_null_is_one(formatter, columns):
    documents = formatter({**columns, "weight": [0.5, None, 2]})
    assert [{span.weight for span in document if span.trained} for document in documents] == [{0.5}, {1.0}, {2.0}]
    plain = type(formatter)(**{**vars(formatter), "weighted": False})(columns)
    assert [[span[:2] for span in document] for document in documents] == [
        [span[:2] for span in document] for document in plain
    ]


@pytest.mark.parametrize("weight", [-1, float("nan"), "much"])
def test_an_invalid_weight_of_a_row_is_rejected_with_its_number(weight):
    with pytest.raises(RowError, match="column 'weight' is") as caught:
        Text(weighted=True)({"text": ["a", "b"], "weight": [1, weight]})
    assert caught.value.index == 1


def formatter_of(columns, **options):
    features = Features({name: kind if isinstance(kind, Json) else Value(kind) for name, kind in columns.items()})
    return recognise(features, tiny_tokenizer(chat_template=CHATML), Formats(**options), tiny_config().data)


@pytest.mark.parametrize(
    "columns",
    [
        {"text": "string"},
        {"prompt": "string", "completion": "string"},
        {"instruction": "string", "output": "string"},
        {"messages": Json()},
    ],
)
@pytest.mark.parametrize("kind", ["int64", "float32", "float64"])
def test_a_column_of_numbers_named_weight_is_recognised_and_logged(columns, kind, caplog):
    with caplog.at_level(logging.INFO, "sftkit"):
        assert not formatter_of(columns).weighted
        assert not caplog.messages
        assert formatter_of({**columns, "weight": kind}).weighted
    assert "using column 'weight' as the weight of each row's loss" in caplog.messages


@pytest.mark.parametrize("kind", ["string", "large_string"])
def test_weights_may_be_numbers_written_as_text_as_in_csv_files(kind):
    formatter = formatter_of({"text": "string", "weight": kind})
    documents = formatter({"text": ["a", "b", "c"], "weight": ["0.5", None, "2"]})
    assert [document[0].weight for document in documents] == [0.5, 1.0, 2.0]


@pytest.mark.parametrize("kind", ["bool", "null"])
def test_a_column_named_weight_must_hold_numbers(kind):
    with pytest.raises(DataError, match=f"column 'weight' .* is of type {kind}, not a number") as caught:
        formatter_of({"text": "string", "weight": kind})
    assert "rename the column" in caught.value.problems[0].fix


def test_the_text_column_may_be_named_weight():
    assert not formatter_of({"weight": "string"}, text_column="weight").weighted


def test_completions_keep_the_weights_of_their_rows():
    inner = Text(weighted=True)
    formatter = ResponsesOnly(inner, "A:", "Q:", None)
    (document,) = formatter({"text": ["Q: x A: y Q: z A: w"], "weight": [0.5]})
    assert "".join(span.text for span in document) == "Q: x A: y Q: z A: w"
    assert [(span.text, span.weight) for span in document if span.trained] == [(" y ", 0.5), (" w", 0.5)]


def test_completions_keep_the_weights_of_their_spans():
    def pieces(row):
        return [("Q: x A: y", True, 0.5), (" and z", True, 2.0), ("!", False)]

    (document,) = ResponsesOnly(UserFunction(pieces), "A:", None, None)({"a": ["-"]})
    assert [tuple(span) for span in document] == [
        ("Q: x A:", False, 0.5),
        (" y", True, 0.5),
        (" and z", True, 2.0),
        ("!", True, 1.0),
    ]


def test_completion_only_keeps_the_weights_of_rows():
    columns = Features({"text": Value("string"), "weight": Value("float64")})
    hook = CompletionOnly(response_template="A:").make_formatter(tiny_tokenizer())
    next(hook)
    with pytest.raises(StopIteration) as done:
        hook.send(recognise(columns, tiny_tokenizer(), Formats(), tiny_config().data))
    (document,) = done.value.value({"text": ["Q A: b"], "weight": [3.0]})
    assert [(span.text, span.weight) for span in document if span.trained] == [(" b", 3.0)]


def test_a_function_may_return_weights():
    def pieces(row):
        return [(row["a"], False), ("b", True, 0.5), ("c", True)]

    (document,) = UserFunction(pieces)({"a": ["x"]})
    assert [span.weight for span in document] == [1.0, 0.5, 1.0]


def test_an_invalid_weight_from_a_function_is_rejected():
    with pytest.raises(RowError, match="a span with the weight -1"):
        UserFunction(lambda row: [(row["a"], True, -1)])({"a": ["x"]})


def test_weighted_formatters_can_be_pickled():
    formatter = Text(weighted=True)
    assert pickle.loads(pickle.dumps(formatter)) == formatter
