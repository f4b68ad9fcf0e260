"""Token ids of conversations in the formats of Mistral, compared with ``mistral-common``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from sftkit.data.documents import documents_of
from sftkit_plugins.formats.chat import Chat
from sftkit_plugins.formats.conversation import Conversation

pytest.importorskip("mistral_common", reason="mistral-common is not installed")
pytest.importorskip("sentencepiece", reason="sentencepiece is not installed")
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.protocol.instruct.validator import ValidationMode
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

FOLDER = Path(__file__).parent / "templates"
V1, V3 = ((FOLDER / f"mistral_{name}.jinja").read_text() for name in ("v1", "v3"))
VERSIONS = {
    "v1": (V1, MistralTokenizer.v1),
    "v2": (V3, MistralTokenizer.v2),
    "v3": (V3, MistralTokenizer.v3),
    "tekken": (V3.replace("space = ' '", "space = ''"), lambda: MistralTokenizer.v3(is_tekken=True)),
}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TALK = [
    {"role": "user", "content": "What is 1+1?"},
    {"role": "assistant", "content": "It is 2."},
    {"role": "user", "content": "Grüß Gott!\nAnd 2+2?"},
    {"role": "assistant", "content": "4"},
]
PARAMETERS = {"type": "object", "properties": {"town": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "look_up", "description": "Looks up.", "parameters": PARAMETERS}}]
CALLS = [
    {"type": "function", "id": id, "function": {"name": "look_up", "arguments": {"town": town}}}
    for id, town in (("abcdefghi", "Ulm"), ("bcdefghij", "Bonn"))
]
RESULTS = [
    {"role": "tool", "name": "look_up", "tool_call_id": call["id"], "content": str(number)}
    for number, call in enumerate(CALLS, start=20)
]
ASKED = [TALK[0], {"role": "assistant", "content": "", "tool_calls": CALLS}, *RESULTS, *TALK[1:]]
CONVERSATIONS = {
    "plain": (TALK, None),
    "system": ([{"role": "system", "content": "Be brief."}, *TALK], None),
    "tools": (ASKED, TOOLS),
    "tools, system": ([{"role": "system", "content": "Be brief."}, *ASKED], TOOLS),
}


class Reader:
    """Gives the rows, which are conversations."""

    columns = frozenset({"row"})

    def __call__(self, rows, index):
        return rows["row"][index]


def their_ids(tokenizer, messages, tools):
    validator = type(tokenizer._chat_completion_request_validator)(ValidationMode.finetuning)
    tokenizer = MistralTokenizer(tokenizer.instruct_tokenizer, validator, tokenizer._instruct_request_normalizer)
    rows = [
        {
            **message,
            "tool_calls": [
                {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
                for call in message["tool_calls"]
            ],
        }
        if "tool_calls" in message
        else message
        for message in messages
    ]
    return tokenizer.encode_chat_completion(ChatCompletionRequest(messages=rows, tools=tools)).tokens


def our_ids(tokenizer, text, *, version):
    """The ids of a rendered text; Mistral's tokenizers are given the text between the control tokens."""
    inner = tokenizer.instruct_tokenizer.tokenizer
    controls = r"(<s>|</s>)" if version == "v1" else r"(<s>|</s>|\[/?[A-Z_]+\])"
    ids = []
    for at, piece in enumerate(re.split(controls, text)):
        if at % 2:
            named = {"<s>": inner.bos_id, "</s>": inner.eos_id}
            ids.append(named[piece] if piece in named else inner.get_special_token(piece))
        elif piece:  # sentencepiece adds the space before a text itself
            ids += inner.encode(piece if version == "tekken" else piece.removeprefix(" "), bos=False, eos=False)
    return ids


@pytest.mark.parametrize("kind", CONVERSATIONS)
@pytest.mark.parametrize("version", VERSIONS)
def test_ids_are_those_of_mistral_common(version, kind):
    messages, tools = CONVERSATIONS[kind]
    if tools and version in ("v1", "v2"):
        pytest.skip("version 1 has no tools, and version 2 shows only the last call")
    template, make = VERSIONS[version]
    tokenizer = make()
    chat = Chat(reader=Reader(), template=template, special_tokens=SPECIAL)
    (document,) = documents_of(chat({"row": [Conversation(messages, None, tools)]}))
    ours = our_ids(tokenizer, "".join(span.text for span in document), version=version)
    assert ours == their_ids(tokenizer, messages, tools)
    answers = [span.text for span in document if span.trained]
    assert [answer[-4:] for answer in answers] == ["</s>"] * len(answers)
    assert len(answers) == sum(message["role"] == "assistant" for message in messages)
