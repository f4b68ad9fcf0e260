"""Whether everything in a row is in its rendered text: messages, tools, calls, documents, and reasoning."""

from __future__ import annotations

from pathlib import Path

import pytest

from sftkit.data.documents import Formatted, RowError, Skipped, documents_of
from sftkit.testing import CHATML
from sftkit_plugins.formats.chat import Chat
from sftkit_plugins.formats.conversation import Conversation
from sftkit_plugins.formats.presence import REASONING_NOTE

TEMPLATES = {path.stem: path.read_text() for path in (Path(__file__).parent / "templates").glob("*.jinja")}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
PARAMETERS = {"type": "object", "properties": {"town": {"type": "string", "description": "Where."}}}
TOOL = {"type": "function", "function": {"name": "look_up", "description": "Looks up.", "parameters": PARAMETERS}}
CALLS = [
    {"type": "function", "id": f"abcdefgh{number}", "function": {"name": "look_up", "arguments": {"town": town}}}
    for number, town in enumerate(("Ulm", "Bonn"))
]
HI = {"role": "user", "content": "Hi"}
HELLO = {"role": "assistant", "content": "Hello"}
BYE = {"role": "user", "content": "Bye"}
FAREWELL = {"role": "assistant", "content": "Bye."}
DEVELOPER = {"role": "developer", "content": "Answer in French."}
THOUGHT = [HI, HELLO | {"reasoning_content": "I greet."}, BYE, FAREWELL | {"reasoning_content": "I part."}]


class Reader:
    """Gives the rows, which are conversations."""

    columns = frozenset({"row"})

    def __call__(self, rows, index):
        return rows["row"][index]


def outcome(template, messages, tools=None, variables=None, **options):
    chat = Chat(reader=Reader(), template=TEMPLATES.get(template, template), special_tokens=SPECIAL, **options)
    (found,) = chat({"row": [Conversation(messages, 1, tools, variables or {})]})
    return found


def texts(*args, **options):
    return [
        "".join(f"⟦{span.text}⟧" if span.trained else span.text for span in document)
        for document in documents_of([outcome(*args, **options)])
    ]


def notes(*args, **options):
    found = outcome(*args, **options)
    return found.notes if isinstance(found, Formatted) else ()


def refusal(*args, **options):
    with pytest.raises(RowError) as caught:
        outcome(*args, **options)
    return caught.value


# Messages


@pytest.mark.parametrize(
    ("message", "part"),
    [
        (DEVELOPER, "developer"),
        ({"role": "system", "content": "Be brief."}, "system"),
        ({"role": "tool", "content": "21", "name": "look_up"}, "tool"),
    ],
)
@pytest.mark.parametrize("loss", ["assistant", "completion", "all"])
def test_a_message_that_the_template_drops_is_refused_unless_allowed(message, part, loss):
    messages = [HI, HELLO, message, FAREWELL] if part == "tool" else [message, HI, HELLO]
    if loss == "completion":
        messages = [HI, HELLO, message, FAREWELL]
    error = refusal("ignores_roles", messages, loss=loss)
    assert f"leaves out the content of message {messages.index(message) + 1} (role {part})" in error.message
    assert f"allow_left_out={part}" in error.fix
    allowed = notes("ignores_roles", messages, loss=loss, allow_left_out=(part,))
    assert allowed == (f"{part} message left out by the template",)


def test_a_developer_message_is_advised_to_be_a_system_message():
    assert "system message" in refusal("thinking", [DEVELOPER, HI, HELLO]).fix


def test_a_message_without_text_may_be_left_out():
    assert texts("ignores_roles", [{"role": "system", "content": " "}, HI, HELLO])


def test_an_answer_that_the_template_drops_is_not_trained_if_allowed():
    template = CHATML.replace("in messages %}", "in messages[-2:] %}")
    assert "content of message 1 (role user)" in refusal(template, [HI, HELLO, BYE, FAREWELL]).message
    (text,) = texts(template, [HI, HELLO, BYE, FAREWELL], allow_left_out=("user", "assistant"))
    assert text.count("⟦") == 1


# Tools, calls and documents


@pytest.mark.parametrize("template", [CHATML, "ignores_roles", "end_after_conversation"])
def test_tools_that_the_template_does_not_render_are_refused_unless_allowed(template):
    error = refusal(template, [HI, HELLO], [TOOL])
    assert "leaves out the column 'tools'" in error.message
    assert "allow_left_out=tools" in error.fix
    assert "tools left out by the template" in notes(template, [HI, HELLO], [TOOL], allow_left_out=("tools",))


@pytest.mark.parametrize(
    ("rendered", "missing"),
    [
        ("tool.function.name", "the description of tool 1"),
        ("tool.function.description", "the name of tool 1"),
        ("tool.function.name + tool.function.description", "parameter town"),
    ],
)
def test_the_missing_part_of_a_tool_is_named(rendered, missing):
    template = f"{{% for tool in tools %}}{{{{ {rendered} }}}}{{% endfor %}}{CHATML}"
    assert missing in refusal(template, [HI, HELLO], [TOOL]).message


def test_calls_that_the_template_drops_are_refused_unless_allowed():
    messages = [HI, HELLO | {"tool_calls": CALLS[:1]}]
    error = refusal("ignores_roles", messages)
    assert "leaves out the tool_calls of message 2" in error.message
    assert texts("ignores_roles", messages, allow_left_out=("tool_calls",)) == [
        "<|user|>\nHi<|end|>\n<|assistant|>\n⟦Hello<|end|>⟧\n"
    ]


def test_a_second_call_that_the_template_drops_is_named():
    error = refusal("last_turn_differs", [HI, {"role": "assistant", "content": "", "tool_calls": CALLS}])
    assert "leaves out the tool call 2 of message 2" in error.message
    assert "parallel calls" in error.fix


def test_a_call_with_an_id_instead_of_its_name_is_refused_unless_the_id_has_it():
    template = CHATML.replace("{{ '\\n' }}", "").replace(
        "{% endgeneration %}",
        "{% for call in message.tool_calls or [] %}{{ call.id ~ call.function.arguments | tojson }}{% endfor %}"
        "{% endgeneration %}",
    )
    call = CALLS[0] | {"id": "functions.look_up:0"}
    assert "functions.look_up:0" in refusal(template, [HI, HELLO | {"tool_calls": CALLS[:1]}]).fix
    assert "functions.look_up:0" in texts(template, [HI, HELLO | {"tool_calls": [call]}])[0]


def test_documents_must_be_rendered():
    rendering = "{% for document in documents or [] %}{{ document.title }}: {{ document.text }}\n{% endfor %}"
    variables = {"documents": [{"title": "Ulm", "text": "A town."}]}
    assert texts(rendering + CHATML, [HI, HELLO], variables=variables)[0].startswith("Ulm: A town.\n")
    assert "leaves out the column 'documents'" in refusal(CHATML, [HI, HELLO], variables=variables).message


# Variables


def test_variables_of_the_run_reach_the_template_and_those_of_the_row_win():
    template = "{{ mood | default('none') }}" + CHATML
    rows = {"row": [Conversation([HI, HELLO], variables=row) for row in ({"mood": "good"}, {})]}
    for run, expected in (({"mood": "evil"}, ["good", "evil"]), ({}, ["good", "none"])):
        chat = Chat(reader=Reader(), template=template, special_tokens=SPECIAL, variables=run)
        assert [document[0].text[:4] for document in documents_of(chat(rows))] == expected


def test_a_variable_that_the_template_does_not_read_is_noted():
    found = notes(CHATML, [HI, HELLO], variables={"enable_thinking": False})
    assert found == ("chat_template_kwargs enable_thinking ignored",)


# Reasoning


def test_reasoning_of_earlier_turns_that_is_left_out_is_noted():
    (text,) = texts("thinking", THOUGHT)
    assert "⟦Hello<|im_end|>⟧" in text
    assert text.endswith("⟦<think>\nI part.\n</think>\n\nBye.<|im_end|>⟧\n")
    assert notes("thinking", THOUGHT) == (REASONING_NOTE,)


def test_last_turn_only_does_not_train_turns_whose_reasoning_is_left_out():
    (text,) = texts("thinking", THOUGHT, reasoning="last_turn_only")
    assert text.count("⟦") == 1
    assert text.endswith("⟦<think>\nI part.\n</think>\n\nBye.<|im_end|>⟧\n")
    assert notes("thinking", THOUGHT, reasoning="last_turn_only") == (REASONING_NOTE,)
    assert texts("thinking", [HI, HELLO, BYE, FAREWELL], reasoning="last_turn_only")[0].count("⟦") == 2
    dropped = outcome("thinking", [*THOUGHT[:2], BYE], reasoning="last_turn_only")
    assert dropped == Skipped("no turn whose reasoning the template renders")


def test_each_turn_as_last_makes_a_document_of_each_turn():
    documents = texts("thinking", THOUGHT, reasoning="each_turn_as_last")
    start = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert documents == [
        f"{start}⟦<think>\nI greet.\n</think>\n\nHello<|im_end|>⟧\n",
        f"{start}Hello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
        "⟦<think>\nI part.\n</think>\n\nBye.<|im_end|>⟧\n",
    ]


def test_reasoning_that_the_template_never_renders_is_refused():
    for messages in (THOUGHT, THOUGHT[:2], [*THOUGHT[:2], BYE, FAREWELL]):
        error = refusal(CHATML, messages)
        assert "leaves out the reasoning_content of message" in error.message
        assert "<think>" in error.fix


def test_a_block_of_reasoning_without_text_is_trained_as_it_is_rendered():
    (text,) = texts("thinking", [HI, HELLO | {"content": "<think>\n\n</think>\n\nHello"}])
    assert text.endswith("⟦<think>\n\n</think>\n\nHello<|im_end|>⟧\n")


def test_inline_reasoning_of_an_earlier_turn_that_is_left_out_is_noted():
    inline = HELLO | {"content": "<think>\nI greet.\n</think>\n\nHello"}
    assert notes("thinking", [HI, inline, BYE, FAREWELL]) == (REASONING_NOTE,)
    cutting = CHATML.replace("message['content']", "message['content'].split('</think>')[-1]")
    error = refusal(cutting, [HI, inline])
    assert "leaves out the thinking in the content of message 2" in error.message


# The date


def test_a_template_that_prints_the_date_prints_the_one_of_the_run():
    (text,) = texts("last_turn_differs", [HI, HELLO])
    assert "Today is 2024-07-26." in text
    assert notes("last_turn_differs", [HI, HELLO]) == ("the template prints a date: 2024-07-26 is used",)
    assert "Today is 2030-01-02." in texts("last_turn_differs", [HI, HELLO], date="2030-01-02")[0]
