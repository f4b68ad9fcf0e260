"""Assistant turns in published chat templates: with markers, without them, and compared with transformers.

The templates are those of the installed ``trl``, which has one with markers for many models. The markers are removed
from a copy in memory. Both must give the same turns, or the template without markers must be rejected.
"""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import pytest
from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import render_jinja_template

from sftkit.data.documents import RowError, documents_of
from sftkit_plugins.formats.chat import Chat
from sftkit_plugins.formats.messages import MessagesReader, read_messages
from sftkit_plugins.formats.rendering import DATE
from sftkit_plugins.formats.side_columns import SideColumns

trl = pytest.importorskip("trl")
FOLDER = Path(trl.__file__).parent / "chat_templates"
TEMPLATES = {path.stem: path.read_text() for path in sorted(FOLDER.glob("*.jinja"))}
TRAINING = sorted(name for name in TEMPLATES if name.endswith("_training"))
SPECIAL = {"bos_token": "<BOS>", "eos_token": "<EOS>", "pad_token": "<PAD>", "unk_token": "<UNK>"}

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "description": "Where."}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Now.", "parameters": PARAMETERS}}]
CALLS = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}]


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **keys):
    return {"role": "assistant", "content": content, **keys}


RESULT = {"role": "tool", "name": "weather", "content": '{"t": 20}'}
ASKED = [user("Weather in Paris?"), assistant("", tool_calls=CALLS), RESULT, assistant("It is 20.")]
CONVERSATIONS = {
    "single": [user("Hi there"), assistant("Hello, friend.")],
    "multi": [user("Hi there"), assistant("Hello, friend."), user("Again?"), assistant("Yes, again.")],
    "system": [{"role": "system", "content": "Be brief."}, user("Hi"), assistant("Ho."), user("Hi"), assistant("Ho.")],
    "same": [user("x"), assistant("x"), user("x"), assistant("x")],
    "white space": [user("  Hi "), assistant("  Hello  \n"), user(" x\n"), assistant("\nYes.\n")],
    "tool calls": ASKED,
    "tool calls twice": [*ASKED, user("And now?"), *ASKED[1:]],
    "tool call and text": [ASKED[0], assistant("I look.", tool_calls=CALLS), *ASKED[2:]],
    "reasoning": [
        user("1+1?"),
        assistant("Two.", reasoning_content="One and one."),
        user("2+2?"),
        assistant("Four.", reasoning_content="Two and two."),
    ],
    "reasoning in text": [
        user("1+1?"),
        assistant("<think>\nOne and one.\n</think>\n\nTwo."),
        user("2+2?"),
        assistant("<think>\nTwo and two.\n</think>\n\nFour."),
    ],
}


def without_markers(template):
    """The same template: a block that is always true has the same whitespace control."""
    template = re.sub(r"\{%([-+]?)\s*generation\s*([-+]?)%\}", r"{%\1 if true \2%}", template)
    return re.sub(r"\{%([-+]?)\s*endgeneration\s*([-+]?)%\}", r"{%\1 endif \2%}", template)


def turns(template, messages):
    tools = TOOLS if any(message["role"] == "tool" for message in messages) else None
    chat = Chat(
        reader=MessagesReader(("messages",), SideColumns(tools="tools")), template=template, special_tokens=SPECIAL
    )
    (document,) = documents_of(chat({"messages": [messages], "tools": [tools]}))
    text, regions = "", []
    for span in document:
        if span.trained:
            regions.append((len(text), len(text) + len(span.text)))
        text += span.text
    return text, regions


def or_rejected(template, messages):
    try:
        return turns(template, messages)
    except RowError:
        return None


@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("name", TRAINING)
def test_turns_are_the_same_with_and_without_markers(name, kind):
    marked = or_rejected(TEMPLATES[name], CONVERSATIONS[kind])
    found = or_rejected(without_markers(TEMPLATES[name]), CONVERSATIONS[kind])
    assert found == marked


@pytest.fixture
def fixed_date(monkeypatch):
    """transformers' clock shows the date that is the default of the formatter."""

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls.fromisoformat(DATE)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.usefixtures("fixed_date")
def test_only_prompt_and_whitespace_inside_the_markers_are_not_trained(name, kind):
    messages = CONVERSATIONS[kind]
    ours = or_rejected(TEMPLATES[name], messages)
    if ours is None:
        pytest.skip("the template does not render the whole conversation")
    text, regions = ours
    tools = TOOLS if any(message["role"] == "tool" for message in messages) else None
    # for "reasoning in text", the field is used if the template has one
    kinds = (kind, "reasoning") if kind == "reasoning in text" else (kind,)
    rows = [[read_messages([message], 0, "messages")[0] for message in CONVERSATIONS[one]] for one in kinds]
    theirs, marks = render_jinja_template(
        rows, tools, chat_template=TEMPLATES[name], return_assistant_tokens_mask=True, **SPECIAL
    )
    marked = [marks[theirs.index(text)]]
    kept = {at for start, end in regions for at in range(start, end)}
    enclosed = {at for start, end in marked[0] for at in range(start, end)}
    beyond = "".join(text[at] for at in sorted(kept - enclosed))
    assert re.fullmatch(r"(<\|tool_response>)*", beyond)  # with this token Gemma ends a turn that calls a tool
    left_out = "".join(text[at] for at in sorted(enclosed - kept))
    prompts = r"(<think>|<｜Assistant｜>|<｜tool▁outputs▁end｜>|<\|start\|>assistant|\s|</think>)*"
    assert re.fullmatch(prompts, left_out), left_out
    assert not kept or all(text[start:end].strip() for start, end in regions)


@pytest.mark.parametrize("kind", ["single", "multi", "same", "tool calls", "reasoning"])
@pytest.mark.parametrize("name", sorted(set(TEMPLATES) - set(TRAINING)))
def test_turns_in_original_templates_are_what_the_assistant_wrote(name, kind):
    found = or_rejected(TEMPLATES[name], CONVERSATIONS[kind])
    if found is None:
        pytest.skip("the template is rejected")
    text, regions = found
    written = [message for message in CONVERSATIONS[kind] if message["role"] == "assistant"]
    assert len(regions) == len(written)
    for (start, end), message in zip(regions, written, strict=True):
        turn = text[start:end]
        assert message["content"] in turn
        assert "Paris" in turn or not message.get("tool_calls")
        for other in CONVERSATIONS[kind]:
            if other is not message and other["content"] not in ("", message["content"]):
                assert other["content"] not in turn
        # no header of another role: gpt-oss and muse split an assistant's message into parts with headers
        assert not re.search(r"(?<!to=)\b(user|system)\b", turn)


def test_each_name_of_reasoning_reaches_the_template():
    for key in ("reasoning_content", "reasoning", "thinking"):
        messages = [user("1+1?"), assistant("Two.", **{key: "One and one."})]
        for name in ("gptoss_training", "qwen3_training"):
            text, ((start, end),) = turns(TEMPLATES[name], messages)
            assert "One and one." in text[start:end]


ALWAYS_PROMPTING = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}<assistant>"
UNPROMPTED = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}"
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
EOS_IF_LAST = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if loop.last and m.role == 'assistant' %}"
    "<EOS>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LATE_SYSTEM = (
    "{% for m in messages %}{% if loop.last and m.role == 'user' %}[S]be brief[/S]{% endif %}"
    "[{{ m.role }}]{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
FIRST_TURN_REWRITTEN = (
    "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' and loop.last %}THINK {% endif %}"
    "{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (INST, ["Hello, friend.<EOS>", "Yes, again.<EOS>"]),
        (UNPROMPTED, ["Hello, friend.</s>", "Yes, again.</s>"]),
        (LATE_SYSTEM, ["Hello, friend.</s>", "Yes, again.</s>"]),
        (FIRST_TURN_REWRITTEN, ["Hello, friend.</s>", "THINK Yes, again.</s>"]),
        (ALWAYS_PROMPTING, ["Hello, friend.</s>", "Yes, again.</s>"]),
        (EOS_IF_LAST, ["Hello, friend.", "Yes, again.<EOS>"]),
    ],
)
def test_turns_are_found_in_unusual_templates(template, expected):
    text, regions = turns(template, CONVERSATIONS["multi"])
    assert [text[start:end] for start, end in regions] == expected


@pytest.mark.parametrize(
    ("messages", "part"),
    [
        ([user("a"), assistant("", tool_calls=CALLS), RESULT, assistant("c")], "tool_calls"),
        ([user("a"), assistant("b", thinking="why")], "reasoning_content"),
    ],
)
def test_a_template_that_leaves_out_trained_text_is_rejected(messages, part):
    template = without_markers(FIRST_TURN_REWRITTEN)
    with pytest.raises(RowError, match=f"leaves out the {part} of message 2"):
        turns(template, messages)


def test_a_template_that_drops_the_thinking_of_the_last_turn_is_rejected():
    cutting = UNPROMPTED.replace("{{ m.content }}", "{{ m.content.split('</think>')[-1] }}")
    with pytest.raises(RowError, match="leaves out the thinking in the content of message 2"):
        turns(cutting, [user("a"), assistant("<think>why</think>b")])
