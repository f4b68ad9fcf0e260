"""Chat templates that mark the assistant's answers, with their special tokens."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from sftkit.api import ConfigError, Field, Plugin, Problem, dataclass, grow_embeddings, hookimpl, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from sftkit.api import RunConfig

#: The built-in templates, and the special tokens that each writes besides the tokenizer's BOS and EOS.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "zephyr": (),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "plain": (),
}
WHERE = "plugin chatml, option template"


@dataclass(frozen=True, kw_only=True)
class ChatML(Plugin):
    """Sets a chat template (ChatML, Zephyr, Llama 3, plain or your own), and adds its special tokens."""

    paths: ClassVar[tuple[str, ...]] = ("template",)

    template: Annotated[str, Field(description="chatml, zephyr, llama3, plain, or the path of a .jinja file")] = (
        "chatml"
    )
    tokens: Annotated[
        list[str] | None, Field(description="further special tokens, such as those of your own template")
    ] = None
    pad_to_multiple_of: Annotated[
        int | None, Field(gt=0, description="round the number of embedding rows up to a multiple of this")
    ] = None

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """A template that is neither built in nor a readable file."""
        try:
            self._source()
        except ConfigError as error:
            yield from error.problems

    def _source(self) -> str:
        """The template's text.

        Raises:
            ConfigError: if there is no such template or file, or it cannot be read.
        """
        path = Path(self.template)
        if self.template in TEMPLATES:
            path = template_file(self.template)
        elif not path.is_file():
            fix = nearest(self.template, TEMPLATES) or f"use {', '.join(TEMPLATES)}, or the path of a .jinja file"
            what = f"there is no template {self.template!r}, and no file {os.path.abspath(path)}"
            raise ConfigError(Problem(what, WHERE, fix, ("plugins", "chatml", "template")))
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(Problem(f"{path} cannot be read: {error}", WHERE, "save it as UTF-8 text")) from error

    @hookimpl
    def add_tokens(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Sets the template, adds missing special tokens, and makes the token that ends an answer the EOS.

        Raises:
            ConfigError: if the template cannot be rendered, or ends answers with an EOS that the tokenizer lacks.
        """
        tokenizer.chat_template = self._source()
        special = [*TEMPLATES.get(self.template, ()), *(self.tokens or ())]
        tokenizer.add_tokens([token for token in special if not _is_special(tokenizer, token)], special_tokens=True)
        old_eos = tokenizer.eos_token
        if closing := self._closing_token(tokenizer):
            tokenizer.eos_token = closing
        _set_pad_token(tokenizer, old_eos)

    def _closing_token(self, tokenizer: PreTrainedTokenizerBase) -> str | None:
        """The special token that the template writes directly after an answer, found by rendering one."""
        from jinja2 import TemplateError

        answer = "the answer of the assistant"
        messages = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": answer}]
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False)
        except (TemplateError, TypeError, ValueError) as error:
            uses_eos = tokenizer.eos_token is None and "eos_token" in tokenizer.chat_template
            what = "the template ends answers with EOS, but the tokenizer has no EOS token" if uses_eos else f"{error}"
            fix = "use the template chatml, which has its own" if uses_eos else "correct the template"
            number = getattr(error, "lineno", None)
            line = f", line {number}" if number else ""
            raise ConfigError(Problem(what, f"{WHERE}, {self.template}{line}", fix)) from error
        rest = text.partition(answer)[2].lstrip()
        tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        return max((token for token in tokens if rest.startswith(token)), key=len, default=None)

    @hookimpl
    def resize_embeddings(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, new_token_ids: list[int]
    ) -> bool:
        """A row for every token, rounded up to the multiple; see `sftkit.api.grow_embeddings`."""
        grow_embeddings(model, tokenizer, new_token_ids, self.pad_to_multiple_of)
        return True


def template_file(name: str) -> Path:
    """The file of a built-in template."""
    return Path(__file__).parent / "templates" / f"{name}.jinja"


def _is_special(tokenizer: PreTrainedTokenizerBase, token: str) -> bool:
    return any(added.content == token and added.special for added in tokenizer.added_tokens_decoder.values())


def _set_pad_token(tokenizer: PreTrainedTokenizerBase, old_eos: str | None) -> None:
    """Sets a pad token other than EOS: the present one, else the old EOS, else unk, else a new ``<|pad|>``."""
    for token in (tokenizer.pad_token, old_eos, tokenizer.unk_token):
        if token is not None and token != tokenizer.eos_token:
            tokenizer.pad_token = token
            return
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
