"""Training on completions that are told apart by templates in the text."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, cast

from sftkit.api import (
    Columns,
    ConfigError,
    Document,
    Field,
    Formatter,
    Plugin,
    Problem,
    RunConfig,
    Skipped,
    Span,
    dataclass,
    hookimpl,
)
from sftkit_plugins.completion_only.search import Region, Template, between, places

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class CompletionOnly(Plugin):
    """Trains only on what follows a response template in the text (TRL 0.11, DataCollatorForCompletionOnlyLM).

    Without an instruction template, what follows the last response template is trained; with one, what follows each
    response template up to the next instruction template.
    """

    response_template: Annotated[
        Template, Field(min_length=1, description="text, or token ids in context, after which a response begins")
    ]
    instruction_template: Annotated[
        Template | None, Field(min_length=1, description="text, or token ids in context, at which a response ends")
    ] = None

    @hookimpl
    def check_run(self, config: RunConfig) -> Iterator[Problem]:
        """``data.loss`` and this plugin both choose what is trained."""
        if config.data.loss is not None:
            what = f"data.loss: {config.data.loss} and plugin completion_only both choose what is trained"
            yield Problem(what, "data.loss", "remove data.loss, or drop the plugin", ("data", "loss"))

    @hookimpl(wrapper=True)
    def make_formatter(self, tokenizer: PreTrainedTokenizerBase) -> Generator[None, Formatter | None, Formatter | None]:
        """The data's formatter, with its own choice of what is trained replaced.

        Raises:
            ConfigError: for templates of token ids, if the tokenizer does not tell where its tokens are in the text.
        """
        inner = yield
        if inner is None:
            return None
        if any(item.name == "loss" for item in dataclasses.fields(inner)):
            # What it would pick out is not used, and a row that lacks it is no reason to refuse.
            inner = dataclasses.replace(cast("Any", inner), loss="all")
        templates = (self.response_template, self.instruction_template)
        has_ids = any(isinstance(template, list) for template in templates)
        if has_ids and not tokenizer.is_fast:
            what = "the tokenizer does not tell where its tokens are in the text, which templates of token ids need"
            raise ConfigError(Problem(what, "plugin completion_only", "give the templates as text"))
        return ResponsesOnly(inner, self.response_template, self.instruction_template, tokenizer if has_ids else None)


@dataclasses.dataclass(frozen=True)
class ResponsesOnly(Formatter):
    """The documents of another formatter, trained only on their responses.

    Text is searched among the characters of the document, so that a template matches wherever it is written, however
    its tokens come out in context. Token ids are searched among the document's tokens, as the model gets them.
    """

    inner: Formatter
    response_template: Template
    instruction_template: Template | None
    tokenizer: Any

    @property
    def adds_special_tokens(self) -> bool:
        """As the inner formatter's."""
        return self.inner.adds_special_tokens

    def __call__(self, rows: Columns) -> list[Document | Skipped]:
        """Each document as spans; a document without a template is skipped.

        Raises:
            RowError: from the inner formatter.
        """
        documents = self.inner(rows)
        texts = [_text(document) for document in documents if not isinstance(document, Skipped)]
        found = iter(self._split(text, tokens) for text, tokens in zip(texts, self._tokens(texts), strict=True))
        return [given if isinstance(given, Skipped) else _weighed(next(found), given) for given in documents]

    def _tokens(self, texts: list[str]) -> Sequence[_Tokens | None]:
        if self.tokenizer is None or not texts:
            return [None] * len(texts)
        encoded = self.tokenizer(
            texts,
            add_special_tokens=self.adds_special_tokens,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        return [_Tokens(*pair) for pair in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)]

    def _split(self, text: str, tokens: _Tokens | None) -> Document | Skipped:
        responses = _find(self.response_template, text, tokens)
        if not responses:
            return Skipped(f"no response template {self.response_template!r} in the text")
        instructions = None
        if self.instruction_template is not None:
            instructions = _find(self.instruction_template, text, tokens)
            if not instructions:
                return Skipped(f"no instruction template {self.instruction_template!r} in the text")
        return _spans(text, between(responses, instructions, len(text)))


@dataclasses.dataclass(frozen=True)
class _Tokens:
    ids: list[int]
    offsets: list[Region]


def _find(template: Template, text: str, tokens: _Tokens | None) -> list[Region]:
    """Where the template stands in the text, in characters, in order."""
    if isinstance(template, str):
        return places(template, text)
    assert tokens is not None
    return [(tokens.offsets[first][0], tokens.offsets[end - 1][1]) for first, end in places(template, tokens.ids)]


def _weighed(document: Document | Skipped, given: Document) -> Document | Skipped:
    """The document with the weights that its characters were given, borders of both between its spans."""
    if isinstance(document, Skipped) or all(span.weight == 1 for span in given):
        return document
    spans, rest, weights = [], 0, iter(given)
    for text, trained, _ in document:
        while text:
            if not rest:
                span = next(weights)
                rest, weight = len(span.text), span.weight
                continue
            piece, text = text[:rest], text[rest:]
            spans.append(Span(piece, trained, weight))
            rest -= len(piece)
    return spans


def _text(document: Document) -> str:
    return "".join(span.text for span in document)


def _spans(text: str, regions: Sequence[Region]) -> Document:
    """The text as spans, trained inside the regions, which may overlap."""
    spans, done = [], 0
    for start, end in regions:
        if start > done:
            spans.append(Span(text[done:start], False))
        if end > max(start, done):
            spans.append(Span(text[max(start, done) : end], True))
        done = max(done, end)
    if done < len(text):
        spans.append(Span(text[done:], False))
    return spans
