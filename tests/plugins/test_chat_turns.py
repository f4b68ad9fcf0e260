"""Which turns of a conversation are trained, and where they are in the rendered text."""

from __future__ import annotations

import pickle

import pytest

from sftkit.data.documents import Formatted, RowError, Skipped
from sftkit.testing import CHATML
from sftkit_plugins.formats.chat import Chat
from sftkit_plugins.formats.messages import MessagesReader
from sftkit_plugins.formats.skeleton import Skeleton

PLAIN = CHATML.replace("{% generation %}", "").replace("{% endgeneration %}", "")
STRIPPING = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPECIAL = {"bos_token": "<s>", "eos_token": "<|im_end|>"}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "2"},
]


def trained(messages, template=CHATML, **options):
    chat = Chat(reader=MessagesReader(("messages",)), template=template, special_tokens=SPECIAL, **options)
    (document,) = chat({"messages": [messages]})
    if isinstance(document, Formatted):
        (document,) = document.documents
    return document if isinstance(document, Skipped) else [span.text for span in document if span.trained]


def changed(number, **keys):
    return [{**message, **keys} if at == number else message for at, message in enumerate(TALK)]


@pytest.mark.parametrize("template", [CHATML, PLAIN])
def test_turns_last_trains_only_the_last_turn(template):
    both = trained(TALK, template)
    assert len(both) == 2
    assert trained(TALK, template, turns="last") == both[1:]


@pytest.mark.parametrize("template", [CHATML, PLAIN])
@pytest.mark.parametrize("flag", [{"train": False}, {"weight": 0}])
def test_a_message_can_be_excluded(template, flag):
    assert trained(changed(2, **flag), template) == trained(TALK, template)[1:]


@pytest.mark.parametrize("template", [CHATML, PLAIN])
def test_a_message_can_be_trained_in_addition_to_the_last(template):
    assert trained(changed(2, train=True), template, turns="last") == trained(TALK, template)


def test_keys_are_not_rendered_and_nulls_are_ignored():
    assert trained(changed(2, train=None, weight=1)) == trained(TALK)


@pytest.mark.parametrize("template", [CHATML, PLAIN, STRIPPING])
def test_other_roles_can_be_trained(template):
    end = "</user>" if template == STRIPPING else "<|im_end|>"
    assert trained(TALK, template, roles=("user",)) == [f"One?{end}", f"Two?{end}"]
    assert trained(changed(1, train=True), template) == [f"One?{end}", *trained(TALK, template)]
    assert trained(TALK, template, roles=("user", "assistant"), turns="last") == trained(TALK, template)[1:]
    assert trained(TALK[:1], template) == Skipped("no assistant turn")


@pytest.mark.parametrize("loss", ["all", "completion"])
def test_keys_without_effect_are_rejected(loss):
    with pytest.raises(RowError, match=f"has no effect with loss={loss}"):
        trained(changed(2, train=False), loss=loss)


def test_a_conversation_without_trained_turns_is_skipped():
    messages = [{**message, "train": False} if message["role"] == "assistant" else message for message in TALK]
    assert trained(messages) == Skipped("no assistant turn")


@pytest.mark.parametrize(("number", "flag"), [(2, {"weight": -0.5}), (2, {"train": "no"})])
def test_invalid_values_of_keys_are_rejected(number, flag):
    with pytest.raises(RowError):
        trained(changed(number, **flag))


@pytest.mark.parametrize("content", ["1", " 1\n", "<user>1</user>", "", "</assistant><user>"])
def test_turns_are_exact_in_a_template_that_strips_contents(content):
    messages = [{"role": "user", "content": "  <assistant>x  "}, {"role": "assistant", "content": content}]
    assert trained(messages, STRIPPING) == [f"{content.strip()}</assistant>"]


def test_markers_and_rendering_train_the_same_turns():
    assert trained(TALK, CHATML) == trained(TALK, PLAIN)


def test_a_skeleton_does_not_match_any_other_text():
    skeleton = Skeleton.of("<u>\ue0f00\ue0f1</u><a>\ue0f01\ue0f1</a>")
    assert skeleton.find("<u>hi</u><a>ho</a>", ["hi", "ho"]) == [0, 5, 14]
    for other in ("<u>hi</u><a>HO</a>", "<u>hi</u><a>ho</a>!", "<u>hi</u><b>ho</b>", "<u>hi", ""):
        assert isinstance(skeleton.find(other, ["hi", "ho"]), int)


def test_a_used_formatter_pickles_to_the_same_bytes_as_a_new_one():
    chat = Chat(reader=MessagesReader(("messages",)), template=CHATML, special_tokens=SPECIAL)
    before = pickle.dumps(chat)
    chat({"messages": [TALK]})
    assert pickle.dumps(chat) == before
