"""What is trained with templates that behave like published ones; ⟦ ⟧ encloses it.

The templates are in ``templates``; the first line of each says what is special about it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from sftkit.data.documents import Formatted, RowError, documents_of
from sftkit.testing import CHATML
from sftkit_plugins.formats.chat import Chat
from sftkit_plugins.formats.conversation import Conversation
from sftkit_plugins.formats.finder import END_AT_LAST, NO_END, NO_PROMPT

TEMPLATES = {path.stem: path.read_text() for path in (Path(__file__).parent / "templates").glob("*.jinja")}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Looks up a town.",
        "parameters": {"type": "object", "properties": {"town": {"type": "string", "description": "Where."}}},
    },
}


class Reader:
    """Gives the rows, which are conversations."""

    columns = frozenset({"row"})

    def __call__(self, rows, index):
        return rows["row"][index]


def system(content):
    return {"role": "system", "content": content}


def user(content):
    return {"role": "user", "content": content}


def bot(content, **keys):
    return {"role": "assistant", "content": content, **keys}


def call(id="abcdefghi", **arguments):
    return {"type": "function", "id": id, "function": {"name": "look_up", "arguments": arguments}}


def result(content, id="abcdefghi"):
    return {"role": "tool", "name": "look_up", "tool_call_id": id, "content": content}


TALK = [user("One?"), bot("1"), user("Two?"), bot("2")]
ASKED = [user("One?"), bot("", tool_calls=[call(town="Ulm")]), result("21"), bot("Warm.")]


def outcome(template, messages, tools=None, variables=None, **options):
    chat = Chat(reader=Reader(), template=TEMPLATES.get(template, template), special_tokens=SPECIAL, **options)
    (found,) = chat({"row": [Conversation(messages, None, tools, variables or {})]})
    return found


def marked(template, messages, tools=None, **options):
    (document,) = documents_of([outcome(template, messages, tools, **options)])
    return "".join(f"⟦{span.text}⟧" if span.trained else span.text for span in document)


def notes(template, messages, tools=None, **options):
    found = outcome(template, messages, tools, **options)
    return found.notes if isinstance(found, Formatted) else ()


def refusal(template, messages, tools=None, **options):
    with pytest.raises(RowError) as caught:
        outcome(template, messages, tools, **options)
    return caught.value


# Closing tokens


def test_the_closing_token_of_a_middle_turn_is_trained_if_the_last_has_none():
    text = marked("closed_when_followed", TALK)
    start = "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n"
    assert text == start + "⟦1<|im_end|>⟧\n<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n⟦2⟧"
    assert notes("closed_when_followed", TALK) == (NO_END,)


def test_a_header_between_two_answers_is_not_trained():
    text = marked("closed_when_followed", [user("One?"), bot("1"), bot("And."), *TALK[2:]])
    assert "⟦1<|im_end|>⟧\n<|im_start|>assistant\n⟦And.<|im_end|>⟧\n<|im_start|>user" in text


def test_a_generation_prompt_that_is_always_written_is_not_trained():
    text = marked("always_prompts", TALK)
    expected = "<|turn|><|bot|>⟦1<|end|>⟧<|turn|><|user|>Two?<|end|><|turn|><|bot|>⟦2<|end|>⟧<|turn|><|bot|>"
    assert text.endswith(expected)


def test_the_token_that_closes_a_default_system_message_closes_turns_too():
    text = marked("default_system", TALK)
    answers = "<|assistant|>⟦1<|end|>⟧<|user|>Two?<|end|><|assistant|>⟦2<|end|>⟧<|assistant|>"
    assert text == f"<|system|>Be kind.<|end|><|user|>One?<|end|>{answers}"


def test_a_header_that_counts_the_rounds_is_not_trained():
    rounds = [message for number in range(11) for message in (user(f"{number}?"), bot(f"{number}."))]
    text = marked("counts_rounds", rounds)
    for number in range(10):
        assert f"\nA: ⟦{number}.\n⟧[Turn {number + 1}]\nQ: {number + 1}?" in text
    assert text.endswith("\nA: ⟦10.⟧")


def test_the_last_turn_may_end_with_another_token():
    text = marked("last_turn_differs", [user("One?"), bot("1"), bot("And."), *TALK[2:]])
    header = "<|start|>assistant⟦<|channel|>final<|message|>"
    assert f"{header}1<|end|>⟧{header}And.<|end|>⟧<|start|>user" in text
    assert text.endswith(f"{header}2<|return|>⟧")


def test_a_template_without_end_tokens_is_reported():
    text = marked("no_end_token", TALK)
    assert text == "[gMASK]<sop><|user|>\nOne?<|assistant|>\n⟦1⟧<|user|>\nTwo?<|assistant|>\n⟦2⟧"
    assert notes("no_end_token", TALK) == (NO_END,)


def test_an_end_token_after_the_conversation_only_is_reported():
    assert marked("end_after_conversation", TALK) == "<|user|>One?<|assistant|>⟦1⟧<|user|>Two?<|assistant|>⟦2</s>⟧"
    assert notes("end_after_conversation", TALK) == (END_AT_LAST,)


def test_without_a_generation_prompt_the_header_is_not_trained_and_this_is_reported():
    template = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    found = marked(template, [user("One?"), bot("1"), bot("And."), *TALK[2:]])
    answers = (
        "<|assistant|>\n⟦1<|end|>⟧\n<|assistant|>\n⟦And.<|end|>⟧\n<|user|>\nTwo?<|end|>\n<|assistant|>\n⟦2<|end|>⟧\n"
    )
    assert found == f"<|user|>\nOne?<|end|>\n{answers}"
    assert notes(template, TALK) == (NO_PROMPT,)
    assert notes("mistral_v3", TALK) == ()  # in which nothing is written before answers


def test_a_template_with_end_tokens_has_no_note():
    assert notes(CHATML, TALK) == ()


# Turns that the template moves or does not begin anew


def test_one_assistant_turn_with_calls_trains_what_the_assistant_wrote():
    text = marked("one_assistant_turn", [*ASKED, user("Two?"), bot("2")], [TOOL])
    assert '<|assistant_start|>⟦<|call|>{"look_up": {"town": "Ulm"}}<|call_end|>⟧[21]⟦Warm.<|assistant_end|>⟧<' in text


def test_a_content_after_the_result_of_its_call_is_trained():
    messages = [ASKED[0], bot("Looking.", tool_calls=[call(town="Ulm")]), *ASKED[2:]]
    text = marked("answer_after_result", messages, [TOOL])
    assert text.endswith(
        '⟦<|call>look_up{"town": "Ulm"}<call|><|result>⟧21<result|>⟦Looking.<turn|>⟧\n⟦Warm.<turn|>⟧\n'
    )


MOVED = (
    "<s>[INST] One?[/INST]⟦ 1</s>⟧[INST] Be brief.\n\nTwo?[/INST]⟦ 2</s>⟧",
    '<s>[INST] One?[/INST]⟦[TOOL_CALLS] [{"name": "look_up", "arguments": {"town": "Ulm"}, "id": "abcdefghi"}]</s>⟧'
    '[TOOL_RESULTS] {"content": 21, "call_id": "abcdefghi"}[/TOOL_RESULTS]⟦ Warm.</s>⟧',
)


def test_a_system_text_moved_to_the_last_user_message_is_not_trained():
    assert marked("mistral_v3", [system("Be brief."), *TALK]) == MOVED[0]


def test_turns_after_calls_begin_after_the_ids_of_results():
    messages = [*ASKED, user("Two?"), bot("2")]
    assert marked("mistral_v3", messages, [TOOL]).startswith(MOVED[1] + "[AVAILABLE_TOOLS] ")


def test_two_calls_at_once_are_trained_with_their_ids():
    calls = [call(town="Ulm"), call(id="bbbbbbbbb", town="Bonn")]
    messages = [user("One?"), bot("", tool_calls=calls), result("21"), result("5", id="bbbbbbbbb"), bot("Warm.")]
    text = marked("mistral_v3", messages, [TOOL])
    assert '"Bonn"}, "id": "bbbbbbbbb"}]</s>⟧[TOOL_RESULTS]' in text
    assert text.endswith('"call_id": "bbbbbbbbb"}[/TOOL_RESULTS]⟦ Warm.</s>⟧')


@pytest.mark.parametrize(
    ("template", "start"),
    [
        (CHATML, "<|im_start|>assistant\n⟦"),
        ("closed_when_followed", "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>assistant\n⟦"),
        ("always_prompts", "<s><|turn|><|system|>Preamble of the assistant.<|end|><|turn|><|bot|>⟦"),
        ("last_turn_differs", "<|start|>system<|message|>Today is 2024-07-26.<|end|><|start|>assistant⟦<|channel|>"),
        ("no_end_token", "[gMASK]<sop><|assistant|>\n⟦"),
        ("one_assistant_turn", "<s><|assistant_start|>⟦"),
        ("mistral_v3", "<s>⟦ "),
    ],
)
def test_a_conversation_may_begin_with_the_assistant(template, start):
    text = marked(template, [bot("I am Tom."), *TALK])
    assert text.startswith(start)
    assert text.count("⟦") == 3


def test_markers_are_completed():
    text = marked("first_of_two_unmarked", [user("One?"), bot("1"), bot("And."), *TALK[2:]])
    header = "<|role|>assistant<|text|>"
    expected = f"<s><|role|>user<|text|>One?<|end|>\n{header}⟦1<|end|>⟧\n{header}⟦And.<|end|>⟧\n"
    assert text == f"{expected}<|role|>user<|text|>Two?<|end|>\n{header}⟦2<|end|>⟧\n"


def test_a_generation_prompt_that_is_no_header_is_refused_with_both():
    error = refusal("other_prompt", TALK)
    assert "'<s>bot\\n' is not before it, but '</s><s>assistant\\n'" in error.message
    assert "{% generation %}" in error.fix


# Tool calls


def test_calls_are_given_in_the_form_that_the_template_expects():
    messages = [user("One?"), {"role": "assistant", "tool_calls": [call(town="Ulm")]}, *ASKED[2:]]
    text = marked("arguments_as_text", messages, [TOOL])
    assert '<assistant>⟦>>>look_up\n{"town": "Ulm"}<|eot|>⟧<tool>21' in text


@pytest.mark.parametrize(
    "arguments",
    [{"town": "Ulm"}, {"town": "Ulm", "days": 3, "deep": {"list": ["a", 1.5, True]}}, {}, {"code": "if a < b:\n  'x'"}],
)
@pytest.mark.parametrize("template", ["arguments_as_tags", "arguments_as_text", "thinking", "mistral_v3"])
def test_arguments_of_any_shape_are_trained_up_to_the_closing_token(template, arguments):
    messages = [user("One?"), bot("", tool_calls=[call(**arguments)]), *ASKED[2:]]
    text = marked(template, messages, [TOOL])
    turn, rest = text[text.index("⟦") + 1 :].split("⟧", 1)
    assert "look_up" in turn
    assert turn.endswith(("<|im_end|>", "<|eot|>", "</s>"))
    assert rest.count("⟦") == 1


def test_values_are_found_as_the_template_escapes_them():
    odd = "Zü\"rich\\ 東京 'x' <b>&\n"
    text = marked("thinking", [user(odd), bot("", tool_calls=[call(town=odd)]), result(odd), bot(odd)], [TOOL])
    assert "⟦<tool_call>" not in text  # the line break before it is the model's
    assert '⟦\n<tool_call>\n{"name": "look_up", "arguments": {"town": "Zü\\"rich' in text
    assert text.endswith(f"⟦<think>\n\n</think>\n\n{odd}<|im_end|>⟧\n")


def test_markers_that_change_the_text_are_not_used():
    template = "{% for m in messages %}{% set written %}{% generation %}{{ m.content }}{% endgeneration %}{% endset %}"
    template += "<{{ m.role }}>{{ written | length }}:{{ written }}</s>{% endfor %}"
    template += "{% if add_generation_prompt %}<assistant>{% endif %}"
    assert refusal(template, TALK).message.endswith("the template does not render it unchanged")
    shorter = template.replace("{{ written | length }}:", "{% if '\ue0f2' in written %}marked{% endif %}")
    assert marked(shorter, TALK[:2]) == "<user>One?</s><assistant>⟦1</s>⟧"


@pytest.mark.parametrize("answer", ["so </think>", "</think>", "a</think>b</think> ", "<think></think>"])
def test_the_closing_token_follows_a_content_that_ends_with_what_the_template_looks_for(answer):
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if '</think>' in m.content %} {% endif %}"
    template += "{% if not loop.last %}<end>{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    found = marked(template, [user("One?"), bot(answer), *TALK[2:]])
    assert found == f"<user>One?<end><assistant>⟦{answer} <end>⟧<user>Two?<end><assistant>⟦2⟧"


def test_a_content_of_nothing_but_what_the_template_looks_for_is_rendered():
    template = "{% for m in messages %}<{{ m.role }}>{% if '/think' in m.content %}!{% endif %}{{ m.content }}<end>"
    template += "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    assert marked(template, [user("/think"), bot("1")]) == "<user>!/think<end><assistant>⟦1<end>⟧"
