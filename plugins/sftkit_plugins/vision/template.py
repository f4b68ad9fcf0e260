"""Chat templates of image-text models, which take a message's content as a list of parts, made to take text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sftkit.api import ConfigError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Stands for a picture in the text of a message: a private-use character, which no data is likely to hold.
MARK = "\ue0f4"
#: Splits text at the marks, in front of the template itself.
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
def taking_text(tokenizer: PreTrainedTokenizerBase, placeholder: str) -> Iterator[None]:
    """Inside, the tokenizer's chat template takes contents as text with a `MARK` for each picture.

    So whoever renders conversations, and looks for turns in them, need know of nothing but text. Outside, the template
    is what it was.

    Raises:
        ConfigError: if the template does not write pictures.
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
    """That a template takes contents in parts, and writes one placeholder for a picture."""
    parts = [{"type": "image"}, {"type": "text", "text": "\ue0f5"}]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": parts[1:]}]
    try:
        text = tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    except Exception as error:  # a template runs the user's Jinja, which may raise anything
        text, why = "", f"it refuses contents in parts: {error}"
    else:
        printed = "'type'" in text or '"type"' in text
        why = "it prints the parts of a content as they are" if printed else ""
        if not why and text.count(placeholder) != 1:
            why = f"it writes {placeholder!r} {text.count(placeholder)} times for one picture"
    if why:
        what = f"the chat template ({name}) is not made for pictures: {why}"
        fix = "use the model's own, as its processor has it (and drop -p chatml)"
        raise ConfigError(Problem(what, "chat template", fix))
