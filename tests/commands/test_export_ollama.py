"""Chat templates in Go's syntax, rendered by a small interpreter of the part of Go's templates that is written."""

from __future__ import annotations

import json
import re

import pytest

from sftkit.api import ConfigError
from sftkit.testing import CHATML, tiny_model, tiny_tokenizer
from sftkit_commands.export.gguf_tokens import vocabulary_of
from sftkit_commands.export.ollama import modelfile, proving_conversations, translate

LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content + ' [/INST]' }}"
    "{% else %}{{ ' ' + content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for message in messages %}<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
    "{{ message['content'] }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
DEFAULT_SYSTEM = CHATML.replace(
    "{% for message",
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe {{ '{{kind}}' }}.<|im_end|>\n{% endif %}"
    "{% for message",
    1,
)
TEMPLATES = {
    "chatml": CHATML,
    "llama 2": LLAMA_2,
    "llama 3": LLAMA_3,
    "no system": NO_SYSTEM,
    "default system": DEFAULT_SYSTEM,
}


def go(template, messages):
    """Render a template of Go: ranges over messages, comparisons of texts, one variable, and texts."""
    pieces = re.split(r"""(\{\{(?:"(?:\\.|[^"\\])*"|[^"}])*\}\})""", template)
    state = {"$last": "", ".Role": "", ".Content": ""}

    def block(at, run):
        """Interpret up to `else` or `end`; returns the text and where it ended."""
        made = ""
        while at < len(pieces):
            piece = pieces[at]
            code = piece[2:-2].strip() if at % 2 else None
            if code is None:
                made += piece if run else ""
            elif code == "end" or code.startswith("else"):
                return made, at
            elif code == "range .Messages":
                start, end = at + 1, at
                for message in messages:
                    state[".Role"], state[".Content"] = message["role"], message["content"]
                    text, end = block(start, run)
                    made += text
                at = end
            elif code.startswith("if "):
                taken = False
                while True:
                    condition = code.removeprefix("else ").removeprefix("if eq ")
                    name, _, value = condition.partition(" ")
                    holds = run and not taken and state[name] == json.loads(value)
                    taken = taken or holds
                    text, at = block(at + 1, holds)
                    made += text
                    code = pieces[at][2:-2].strip()
                    if code == "end":
                        break
            elif ":=" in code or " = " in code:
                name, _, value = code.replace(":=", "=").partition(" = ")
                if run:
                    state[name.strip()] = state[value] if value in state else json.loads(value)
            elif run:
                made += state[code] if code in state else json.loads(code)
            at += 1
        return made, at

    return block(0, True)[0]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_renders_in_go_as_in_jinja(name):
    tokenizer = tiny_tokenizer(chat_template=TEMPLATES[name])
    found = translate(tokenizer)
    number = 0
    for messages in proving_conversations(found.system):
        expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        begins = "<s>" if expected.startswith("<s>") else ""
        assert begins + go(found.go(), messages) == expected
        number += 1
    assert number == (18 if found.system else 9)
    assert (found.system, found.trims) == (name != "no system", name == "llama 3")


def test_a_template_that_depends_on_more_is_refused():
    counting = "{% for message in messages %}{{ loop.index }}: {{ message['content'] }}\n{% endfor %}"
    for template, reason in (
        (counting, "roles before and after"),
        ("{{ strftime_now('%Y') }}", "current date"),
        (None, "no chat template"),
    ):
        with pytest.raises(ConfigError, match=reason):
            translate(tiny_tokenizer(chat_template=template))


def test_a_modelfile_has_template_stops_and_settings():
    model, tokenizer = tiny_model(), tiny_tokenizer(chat_template=NO_SYSTEM)
    model.generation_config.eos_token_id = [1, 2]
    model.generation_config.temperature = 0.7
    text, notes = modelfile(model, tokenizer, vocabulary_of(tokenizer, 320, [1, 2]), "a.gguf")
    assert text.startswith('FROM ./a.gguf\nTEMPLATE """{{ $last := "" }}')
    for line in (
        'PARAMETER stop "</s>"',
        'PARAMETER stop "<pad>"',
        "PARAMETER temperature 0.7",
        "PARAMETER num_ctx 256",
    ):
        assert f"\n{line}\n" in text
    assert "no system messages" in notes[0]
