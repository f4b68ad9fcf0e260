"""The chat template of a tokenizer in Go's template syntax, and the Modelfile of Ollama.

The template is not parsed. Conversations of known texts are rendered, and what stands between two of the texts is
taken to depend on the roles of the two messages alone. More conversations then have to be rendered alike.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from sftkit.api import ConfigError, Problem

if TYPE_CHECKING:
    from sftkit_commands.export.gguf_tokens import Vocabulary

WHERE = "--ollama"
FIX = "export it with --gguf alone, and write a Modelfile by hand"
START, ANSWER = "", "answer"
Roles = tuple[str, ...]
#: Conversations, by their roles, from which what stands between two messages is read, and those that must agree.
READ: tuple[Roles, ...] = (("user", "assistant", "user"), ("system", "user"))
PROVED: tuple[Roles, ...] = (
    ("user",),
    ("system", "user", "assistant", "user"),
    ("user", "assistant", "user", "assistant", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)
TEXTS = ("xq{}vz", 'Why {}?\n\nBecause it\'s "{}" & <so>.', "Ein Wort: {} é 你好")


@dataclass(frozen=True)
class Translated:
    """A chat template as text between messages.

    Attributes:
        between: the text before a message, or before the answer, by the roles before and after it.
        system: whether the template has system messages.
        trims: whether it removes blanks around contents, which Go's templates cannot.
        begins: whether it begins with the BOS token.
    """

    between: Mapping[tuple[str, str], str]
    system: bool
    trims: bool
    begins: bool

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A conversation up to the answer, without the BOS token at its beginning."""
        roles = [START, *(message["role"] for message in messages), ANSWER]
        texts = [self.between[pair] for pair in pairwise(roles)]
        contents = [*(message["content"] for message in messages), ""]
        return "".join(text + content for text, content in zip(texts, contents, strict=True))

    def go(self) -> str:
        """The template in Go's syntax."""
        roles = ["system", "user", "assistant"] if self.system else ["user", "assistant"]
        parts = ['{{ $last := "" }}{{ range .Messages }}']
        for number, role in enumerate(roles):
            parts.append(f'{{{{ {"else " * (number > 0)}if eq .Role "{role}" }}}}')
            parts += _choice({before: text for (before, after), text in self.between.items() if after == role})
            parts.append("{{ .Content }}")
        parts.append("{{ end }}{{ $last = .Role }}{{ end }}")
        parts += [f'{{{{ if eq $last "user" }}}}{_literal(self.between["user", ANSWER])}{{{{ end }}}}']
        return "".join(parts)


def translate(tokenizer: Any) -> Translated:
    """What a tokenizer's chat template writes between messages.

    Raises:
        ConfigError: if that does not depend on the roles of the messages before and after alone.
    """
    if not isinstance(tokenizer.chat_template, str):
        raise ConfigError(Problem("the tokenizer has no chat template, or several", WHERE, FIX))
    if "strftime_now" in tokenizer.chat_template:
        raise ConfigError(Problem("the chat template writes the current date", WHERE, FIX))
    between: dict[tuple[str, str], str] = {}
    system, begins = True, False
    for roles in READ:
        messages = _conversation(roles, TEXTS[0])
        rendered = _rendered(tokenizer, messages)
        if rendered is None and roles[0] == "system":
            system = False
            continue
        begins = begins or bool(tokenizer.bos_token and (rendered or "").startswith(tokenizer.bos_token))
        for pair, text in _between(rendered, messages, roles):
            text = text.removeprefix(tokenizer.bos_token or "") if pair[0] == START else text
            if between.setdefault(pair, text) != text:
                raise _refusal(roles)
    padded = _rendered(tokenizer, [{"role": "user", "content": "  xq  "}]) or ""
    found = Translated(between, system, "  xq  " not in padded, begins)
    for messages in proving_conversations(system):
        rendered = _rendered(tokenizer, messages)
        bos = tokenizer.bos_token if begins else ""
        if rendered is None or rendered != f"{bos}{found.render(messages)}":
            raise _refusal([message["role"] for message in messages])
    return found


def proving_conversations(system: bool) -> Iterator[list[dict[str, str]]]:
    """Conversations that a template and its translation must render alike."""
    for roles in (*READ, *PROVED):
        if system or roles[0] != "system":
            yield from (_conversation(roles, text) for text in TEXTS)


def modelfile(model: Any, tokenizer: Any, vocabulary: Vocabulary, file: str) -> tuple[str, list[str]]:
    """The Modelfile of a GGUF file, and what the user should know of it.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        vocabulary: the tokenizer as the file has it.
        file: the file's name.

    Raises:
        ConfigError: if its chat template cannot be translated.
    """
    found, notes = translate(tokenizer), []
    if found.trims:
        notes.append("the chat template removes blanks around contents; the template of the Modelfile does not")
    if not found.system:
        notes.append("the chat template has no system messages; the template of the Modelfile ignores them")
    if '"""' in (template := found.go()):
        raise ConfigError(Problem('the chat template contains """, which ends a text in a Modelfile', WHERE, FIX))
    ends = dict.fromkeys(vocabulary.tokens[token] for role, token in vocabulary.ids.items() if role in ("eos", "eot"))
    lines = [f"FROM ./{file}", f'TEMPLATE """{template}"""']
    lines += [f"PARAMETER stop {json.dumps(text, ensure_ascii=False)}" for text in ends]
    settings = model.generation_config
    names = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "repetition_penalty": "repeat_penalty"}
    for name, parameter in names.items():
        if (value := getattr(settings, name, None)) is not None:
            lines.append(f"PARAMETER {parameter} {value}")
    lines.append(f"PARAMETER num_ctx {min(model.config.max_position_embeddings, 4096)}")
    return "\n".join(lines) + "\n", notes


def _conversation(roles: Sequence[str], text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text.format(f"{role}{at}", at)} for at, role in enumerate(roles)]


def _rendered(tokenizer: Any, messages: list[dict[str, str]]) -> str | None:
    """A conversation up to the answer; None if the template refuses it."""
    from jinja2.exceptions import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError:
        return None
    return text


def _between(
    rendered: str | None, messages: list[dict[str, str]], roles: Sequence[str]
) -> Iterator[tuple[tuple[str, str], str]]:
    rest = rendered
    for pair, message in zip(pairwise([START, *roles]), messages, strict=True):
        if rest is None or message["content"] not in rest:
            raise _refusal(roles)
        text, _, rest = rest.partition(message["content"])
        yield pair, text
    yield (roles[-1], ANSWER), rest or ""


def _refusal(roles: Sequence[str]) -> ConfigError:
    what = "what the chat template writes does not depend on the roles before and after it alone"
    return ConfigError(Problem(f"{what}: it differs for {', '.join(roles)}", WHERE, FIX))


def _choice(texts: Mapping[str, str]) -> Iterator[str]:
    """Go's code that writes the text that belongs to the role before."""
    if len(set(texts.values())) == 1:
        yield _literal(next(iter(texts.values())))
        return
    for number, (role, text) in enumerate(texts.items()):
        yield f'{{{{ {"else " * (number > 0)}if eq $last "{role}" }}}}{_literal(text)}'
    yield "{{ end }}"


def _literal(text: str) -> str:
    """A text in Go's template."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if "{{" in text or "}}" in text else text
