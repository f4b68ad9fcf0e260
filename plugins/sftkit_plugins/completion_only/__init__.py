"""Training on completions that templates mark in the text."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from sftkit.api import (
    Columns,
    ConfigError,
    Document,
    Field,
    Formatter,
    Outcome,
    Plugin,
    Problem,
    Skipped,
    Span,
    dataclass,
    documents_of,
    hookimpl,
    with_documents,
)
from sftkit_plugins.completion_only.search import Region, Template, between, places

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class CompletionOnly(Plugin):
    """Trains only on what follows a response template in the text (TRL 0.11, DataCollatorForCompletionOnlyLM).

    Without an instruction template, the text after the last response template is trained. With one, the text after each
    response template is trained, up to the next instruction template.
    """

    response_template: Annotated[
        Template, Field(min_length=1, description="text, or token ids in context, after which a response begins")
    ]
    instruction_template: Annotated[
        Template | None, Field(min_length=1, description="text, or token ids in context, at which a response ends")
    ] = None

    @hookimpl(wrapper=True)
    def make_formatter(self, tokenizer: PreTrainedTokenizerBase) -> Generator[None, Formatter | None, Formatter | None]:
        """The formatter of the data, with its choice of what to train replaced.

        Raises:
            ConfigError: if the user has set what the formatter trains, or for templates of token ids if the tokenizer
                does not report the positions of its tokens in the text.
        """
        inner = yield
        if inner is None:
            return None
        templates = (self.response_template, self.instruction_template)
        has_ids = any(isinstance(template, list) for template in templates)
        if has_ids and not tokenizer.is_fast:
            what = "templates of token ids need a fast tokenizer, which reports the positions of its tokens in the text"
            raise ConfigError(Problem(what, "plugin completion_only", "write the templates as text"))
        inner = inner.defer_loss("completion_only")
        return ResponsesOnly(inner, self.response_template, self.instruction_template, tokenizer if has_ids else None)


@dataclasses.dataclass(frozen=True)
class ResponsesOnly(Formatter):
    """The documents of another formatter, trained only on their responses.

    Text is searched among the characters of the document, so that a template is found however its tokens come out in
    context. Token ids are searched among the document's tokens.
    """

    inner: Formatter
    response_template: Template
    instruction_template: Template | None
    tokenizer: Any

    @property
    def adds_special_tokens(self) -> bool:
        """As for the inner formatter."""
        return self.inner.adds_special_tokens

    @property
    def needs_original_rows(self) -> bool:
        """As for the inner formatter."""
        return self.inner.needs_original_rows

    @property
    def columns_used(self) -> frozenset[str] | None:
        """As for the inner formatter."""
        return self.inner.columns_used

    def __call__(self, rows: Columns) -> list[Outcome]:
        """Each document as spans; documents without a template are skipped.

        Raises:
            RowError: from the inner formatter.
        """
        outcomes = self.inner(rows)
        texts = [_text(document) for document in documents_of(outcomes)]
        found = iter(self._split(text, tokens) for text, tokens in zip(texts, self._tokens(texts), strict=True))
        return [with_documents(outcome, lambda inner: _weighted(next(found), inner)) for outcome in outcomes]

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
    """The positions of the template in the text, in characters, in order."""
    if isinstance(template, str):
        return places(template, text)
    assert tokens is not None
    return [(tokens.offsets[first][0], tokens.offsets[end - 1][1]) for first, end in places(template, tokens.ids)]


def _weighted(document: Document | Skipped, inner: Document) -> Document | Skipped:
    """The document with the weights of the inner document's characters; it is split at the boundaries of both."""
    if isinstance(document, Skipped) or all(span.weight == 1 for span in inner):
        return document
    spans, rest, weights = [], 0, iter(inner)
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
