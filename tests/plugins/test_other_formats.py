"""Formats of other tools and of public data sets: what is read, and what is refused with its cause."""

import logging

import pytest

from sftkit.data.documents import RowError, Skipped
from sftkit.errors import ConfigError, DataError
from sftkit.testing import CHATML
from sftkit_plugins.formats.pairs import PAIRS

ASK, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}

# Questions and answers


@pytest.mark.parametrize(("question", "answer"), PAIRS)
def test_a_pair_is_a_conversation_if_there_is_a_chat_template(read, question, answer):
    rows = read([{question: "Hi", answer: "Hello."}], CHATML)
    assert rows.conversations[0].messages == [ASK, ANSWER]
    assert rows.ignored == set()


@pytest.mark.parametrize(("question", "answer"), PAIRS)
def test_a_pair_is_separated_by_a_line_break_without_one(read, marked, question, answer):
    rows = read([{question: "Hi", answer: "Hello."}])
    assert [marked(outcome) for outcome in rows.outcomes] == ["Hi\n⟦Hello.⟧"]
    assert rows.ignored == set()


@pytest.mark.parametrize(
    ("row", "question"),
    [
        ({"instruction": "When?", "context": "In 2000.", "response": "2000"}, "When?\n\nIn 2000."),
        ({"instruction": "Translate.", "input": "cheese", "response": "Käse"}, "Translate.\n\ncheese"),
        ({"context": "Ulm lies here.", "question": "Where?", "answer": "Here."}, "Ulm lies here.\n\nWhere?"),
        ({"definition": "Yes or no.", "inputs": "Wet?", "targets": "yes"}, "Yes or no.\n\nWet?"),
        ({"instruction": "Name a river.", "context": "", "response": "Danube"}, "Name a river."),
        ({"instruction": "Name a river.", "context": None, "response": "Danube"}, "Name a river."),
    ],
)
def test_context_is_part_of_the_question(read, marked, row, question):
    rows = read([row, {**row, "context": "text"}] if row.get("context", "") is None else [row], CHATML)
    assert rows.conversations[0].messages[0] == {"role": "user", "content": question}
    assert rows.ignored == set()
    assert marked(read([row | {"context": row.get("context") or ""}]).outcomes[0]).startswith(question)


def test_which_columns_are_read_is_logged(read, caplog):
    with caplog.at_level(logging.INFO, "sftkit"):
        read([{"question": "a", "answer": "b"}])
    assert caplog.messages == ["formats: reading the columns answer, question as a question and its answer"]


def test_earlier_answers_are_trained_and_learn_to_stop(read, marked):
    row = {"system": "Be brief.", "query": "And in winter?", "response": "Cold.", "history": [["Summer?", "Warm."]]}
    (outcome,) = read([row]).outcomes
    assert marked(outcome) == "Be brief.\n\nSummer?\n⟦Warm.</s>⟧\n\nAnd in winter?\n⟦Cold.⟧"
    (outcome,) = read([row], CHATML).outcomes
    assert [part.split("⟧")[0] for part in marked(outcome).split("⟦")[1:]] == ["Warm.</s>", "Cold.</s>"]


@pytest.mark.parametrize(
    ("loss", "trained"), [("completion", ["Cold.</s>"]), ("assistant", ["Warm.</s>", "Cold.</s>"])]
)
def test_the_loss_of_a_pair_can_be_its_last_answer_alone(read, loss, trained):
    row = {"query": "And in winter?", "response": "Cold.", "history": [["Summer?", "Warm."]]}
    (document,) = read([row], CHATML, loss=loss).outcomes
    assert [span.text.strip() for span in document if span.trained] == trained


@pytest.mark.parametrize("template", [None, CHATML])
def test_a_null_answer_is_refused_and_an_empty_pair_dropped(read, template):
    rows = read([{"question": "", "answer": ""}, {"question": "a", "answer": None}], template)
    with pytest.raises(RowError, match="column 'answer' is null") as caught:
        rows.formatter(rows.columns)
    assert caught.value.index == 1
    first = {name: values[:1] for name, values in rows.columns.items()}
    assert isinstance(rows.formatter(first)[0], Skipped)


# Conversations in other shapes


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": ["Hi", "Hello."]},
        {"data": ["Hi", "Hello."]},
        {"conversation": [{"input": "Hi", "output": "Hello."}]},
        {"conversation": [{"human": "Hi", "assistant": "Hello."}]},
        {"conversation": [ASK, ANSWER]},
        {"contents": [{"role": "user", "parts": [{"text": "Hi"}]}, {"role": "model", "parts": [{"text": "Hello."}]}]},
        {"messages": [{"role": "User", "message": "Hi"}, {"role": "Chatbot", "message": "Hello."}]},
        {"messages": '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]'},
        {"prompt": [ASK], "completion": "Hello."},
        {"prompt": "Hi", "completion": [ANSWER]},
    ],
)
def test_conversations_are_read_in_every_shape(read, row):
    assert read([row], CHATML).conversations[0].messages == [ASK, ANSWER]


def test_gemini_calls_and_results_are_read(read):
    call = {"functionCall": {"name": "weather", "args": {"city": "Ulm"}}}
    result = {"functionResponse": {"name": "weather", "response": {"t": 21}}}
    contents = [{"role": "model", "parts": [call]}, {"role": "user", "parts": [result]}]
    asked, said = read([{"contents": contents}], CHATML).conversations[0].messages
    assert asked["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Ulm"}}
    assert said == {"role": "tool", "content": '{"t": 21}'}


def test_further_keys_of_an_exchange_are_noted(read):
    (conversation,) = read([{"conversation": [{"input": "Hi", "output": "Hello.", "score": 3}]}], CHATML).conversations
    assert conversation.notes == ["message key score ignored"]


def test_messages_in_text_that_is_not_json_are_refused(read):
    rows = read([{"messages": "Hi there"}], CHATML)
    with pytest.raises(RowError, match="column 'messages' is text that is not JSON"):
        rows.formatter(rows.columns)


# Trees and segments


def reply(text, role, rank=None, replies=(), **more):
    return {"text": text, "role": role, "rank": rank, "replies": list(replies), **more}


def test_the_best_thread_of_a_tree_is_read_and_the_rest_noted(read):
    answers = [
        reply("bad", "assistant", 1),
        reply("good", "assistant", 0, [reply("unranked", "prompter"), reply("thanks", "prompter", 3)]),
        reply("deleted", "assistant", -1, deleted=True),
    ]
    tree = reply("Hi", "prompter", None, answers)
    rows = read([{"message_tree_id": "t", "tree_state": "ready", "prompt": tree}], CHATML)
    (conversation,) = rows.conversations
    assert [message["content"] for message in conversation.messages] == ["Hi", "good", "thanks"]
    assert [message["role"] for message in conversation.messages] == ["user", "assistant", "user"]
    assert conversation.notes == ["other replies of the tree ignored"]
    assert rows.ignored == {"message_tree_id", "tree_state"}


def test_a_tree_without_a_choice_has_no_note(read):
    tree = reply("Hi", "prompter", None, [reply("Hello.", "assistant")])
    (conversation,) = read([{"message_tree_id": "t", "prompt": tree}], CHATML).conversations
    assert (conversation.messages, conversation.notes) == ([ASK, ANSWER], ())


def test_segments_are_trained_by_their_label_as_they_are(read, marked):
    segments = [{"label": True, "text": "a "}, {"label": None, "text": "b "}, {"label": True, "text": "c</s>"}]
    rows = read([{"segments": segments}])
    assert [marked(outcome) for outcome in rows.outcomes] == ["⟦a ⟧b ⟦c</s>⟧"]
    assert not rows.formatter.adds_special_tokens
    assert marked(read([{"segments": segments}], loss="all").outcomes[0]) == "⟦a b c</s>⟧"


def test_a_segment_that_is_none_is_refused(read):
    rows = read([{"segments": [{"label": True, "text": "a"}, {"label": True, "text": None}]}])
    with pytest.raises(RowError, match="column 'segments', segment 2"):
        rows.formatter(rows.columns)


# What is refused


@pytest.mark.parametrize(
    ("row", "cause", "fix"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preference data", "{completion: chosen}"),
        ({"instruction": "a", "chosen": "b", "rejected": "c"}, "preference data", "{output: chosen}"),
        ({"chosen": [ASK, ANSWER], "rejected": [ASK, ANSWER]}, "preference data", "{messages: chosen}"),
        ({"prompt": [ASK], "chosen": [ANSWER], "rejected": [ANSWER]}, "preference data", "{completion: chosen}"),
        ({"chosen": "a", "rejected": "b"}, "preference data", "{text: chosen}"),
        ({"conversations": [ASK], "chosen": ANSWER, "rejected": ANSWER}, "preference data", "remove both columns"),
        ({"messages": [ASK, ANSWER], "rejected_response": "c"}, "preference data", "remove the column"),
        (
            {"input": {"messages": [ASK]}, "preferred_output": [ANSWER], "non_preferred_output": [ANSWER]},
            "preference data",
            "{messages: preferred_output}",
        ),
        ({"prompt": "a", "completions": ["b"], "labels": [True]}, "steps of answers", "completion"),
        ({"query": "a", "positive": "b", "negative": "c"}, "embeddings", "formats:columns"),
        ({"instruction": "a", "output": "b", "reflection": "c", "corrected": "d"}, "reflection", "one answer"),
        ({"message_id": "a", "parent_id": None, "text": "b", "role": "prompter"}, "a single message", "file of trees"),
        ({"role": "user", "content": "b"}, "a single message", "column named messages"),
        ({"prompt": "a"}, "no answer, so nothing to train", "formats:columns"),
        ({"category": "a", "turns": ["b", "c"]}, "no answer, so nothing to train", "formats:columns"),
        ({"custom_id": "a", "url": "b", "body": {"messages": [ASK]}}, "requests of a batch", "formats:columns"),
        ({"prompt": "a", "answers": [{"answer": "b", "rank": 1}]}, "ranked answers", "formats:columns"),
    ],
)
def test_data_for_other_purposes_is_refused_with_cause_and_fix(read, row, cause, fix):
    with pytest.raises(DataError) as caught:
        read([row], CHATML)
    (problem,) = caught.value.problems
    assert cause in problem.what
    assert fix in problem.fix


@pytest.mark.parametrize("column", ["label", "kto_tag"])
@pytest.mark.parametrize(
    "row", [{"prompt": "a", "completion": "b"}, {"instruction": "a", "output": "b"}, {"messages": [ASK, ANSWER]}]
)
def test_answers_that_are_labelled_as_bad_are_refused(read, row, column):
    rows = read([{**row, column: True}, {**row, column: False}], CHATML)
    with pytest.raises(RowError, match=f"column '{column}' is false: feedback") as caught:
        rows.formatter(rows.columns)
    assert caught.value.index == 1
    good = {name: values[:1] for name, values in rows.columns.items()}
    assert len(rows.formatter(good)) == 1
    assert column not in rows.ignored


@pytest.mark.parametrize("label", [{"ability": ["x"]}, 0, "false"])
def test_labels_of_other_types_are_only_ignored(read, label):
    rows = read([{"messages": [ASK, ANSWER], "label": label}], CHATML)
    assert rows.ignored == {"label"}
    assert rows.outcomes


@pytest.mark.parametrize("column", ["image", "images", "video", "videos", "audio", "audios"])
@pytest.mark.parametrize("row", [{"text": "a"}, {"instruction": "a", "output": "b"}, {"messages": [ASK, ANSWER]}])
def test_rows_with_media_are_refused(read, row, column):
    rows = read([{**row, column: []}, {**row, column: ["cat.jpg"]}], CHATML)
    with pytest.raises(RowError, match=f"column '{column}' has content that text alone would lose") as caught:
        rows.formatter(rows.columns)
    assert caught.value.index == 1
    assert ("plugin vision" in caught.value.fix) == column.startswith("image")


def test_a_pair_with_turns_to_choose_needs_a_chat_template(read):
    row = {"question": "a", "answer": "b"}
    assert read([row], CHATML, turns="last").formatter
    with pytest.raises(ConfigError, match="turns has no effect"):
        read([row], turns="last")
