"""Lets chat templates of image-text models, which expect contents as lists of parts, accept text with marks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sftkit.api import ConfigError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Stands for an image in the text of a message: a private-use character, unlikely in any data.
MARK = "\ue0f4"
#: Prepended to a template: splits text at the marks.
_SPLIT = (
    "{%- set sft = namespace(messages=[], parts=[]) -%}"
    "{%- for message in messages -%}{%- if message['content'] is string -%}{%- set sft.parts = [] -%}"
    "{%- for piece in message['content'].split('MARK') -%}"
    "{%- if not loop.first -%}{%- set sft.parts = sft.parts + [{'type': 'image'}] -%}{%- endif -%}"
    "{%- if piece or loop.length == 1 -%}"
    "{%- set sft.parts = sft.parts + [{'type': 'text', 'text': piece}] -%}{%- endif -%}{%- endfor -%}"
    "{%- set sft.messages = sft.messages + [dict(message, content=sft.parts)] -%}"
    "{%- else -%}{%- set sft.messages = sft.messages + [message] -%}{%- endif -%}{%- endfor -%}"
    "{%- set messages = sft.messages %}\n"
).replace("MARK", MARK)


@contextmanager
def accepting_text(tokenizer: PreTrainedTokenizerBase, placeholder: str) -> Iterator[None]:
    """Inside, the tokenizer's chat template accepts contents as text with a `MARK` for each image.

    So code that renders conversations and finds turns in them only has to know text. The template is restored at the
    exit.

    Raises:
        ConfigError: if the template writes no images.
    """
    template = tokenizer.chat_template
    if template is None:
        yield
        return
    named = template if isinstance(template, dict) else {"default": template}
    for name, text in named.items():
        _check(tokenizer, name, text, placeholder)
    wrapped = {name: _SPLIT + text for name, text in named.items()}
    tokenizer.chat_template = wrapped if isinstance(template, dict) else wrapped["default"]
    try:
        yield
    finally:
        tokenizer.chat_template = template


def _check(tokenizer: Any, name: str, template: str, placeholder: str) -> None:
    """Checks that a template accepts contents in parts, and writes one placeholder for an image."""
    parts = [{"type": "image"}, {"type": "text", "text": "\ue0f5"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": parts[1:]}]
    try:
        text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    except Exception as error:  # a template runs the user's Jinja, which may raise anything
        text, why = "", f"it refuses contents in parts: {error}"
    else:
        printed = "'type'" in text or '"type"' in text
        why = "it writes the parts of a content as Python objects" if printed else ""
        if not why and text.count(placeholder) != 1:
            why = f"it writes {placeholder!r} {text.count(placeholder)} times for one image"
    if why:
        what = f"the chat template ({name}) does not support images: {why}"
        fix = "use the model's own template, and drop plugins such as chatml that replace it"
        raise ConfigError(Problem(what, "chat template", fix))
