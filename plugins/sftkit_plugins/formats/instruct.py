"""Formats whose columns are text: plain text, prompt and completion, Alpaca."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sftkit.api import Columns, Document, Formatter, Loss, RowError, Skipped, Span
from sftkit_plugins.formats.weights import weigh

EMPTY = Skipped("empty text")

_ALPACA_START = "Below is an instruction that describes a task"
_ALPACA_WITH_INPUT = (
    f"{_ALPACA_START}, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_ALPACA_WITHOUT_INPUT = (
    f"{_ALPACA_START}. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


@dataclass(frozen=True)
class Text(Formatter):
    """Plain text, trained on throughout."""

    column: str
    loss: Loss = "all"
    weighted: bool = False
    """Whether the data has a column ``weight``."""

    def __call__(self, rows: Columns) -> list[Document | Skipped]:
        """One trained span a row."""
        texts = _texts(rows, self.column)
        documents: list[Document | Skipped] = [(Span(text, True),) if text else EMPTY for text in texts]
        return weigh(documents, rows) if self.weighted else documents


@dataclass(frozen=True)
class PromptCompletion(Formatter):
    """A prompt, and the completion that directly follows it."""

    loss: Loss = "completion"
    weighted: bool = False
    """Whether the data has a column ``weight``."""

    def __call__(self, rows: Columns) -> list[Document | Skipped]:
        """A span for the prompt and one for the completion."""
        documents = _pairs(_texts(rows, "prompt"), _texts(rows, "completion"), self.loss)
        return weigh(documents, rows) if self.weighted else documents


@dataclass(frozen=True)
class Alpaca(Formatter):
    """Instruction, perhaps input, and output, in the prompt of Stanford Alpaca (Taori et al., 2023).

    The prompt is that of the released data's ``text`` column: a newline stands between ``### Response:`` and the
    output.
    """

    loss: Loss = "completion"
    weighted: bool = False
    """Whether the data has a column ``weight``."""

    def __call__(self, rows: Columns) -> list[Document | Skipped]:
        """A span for the prompt and one for the output; a null or empty ``input`` takes the prompt without input."""
        instructions, outputs = _texts(rows, "instruction"), _texts(rows, "output")
        inputs = _texts(rows, "input", nullable=True) if "input" in rows else [None] * len(outputs)
        prompts = [
            _ALPACA_WITH_INPUT.format(instruction=instruction, input=given)
            if given
            else _ALPACA_WITHOUT_INPUT.format(instruction=instruction)
            for instruction, given in zip(instructions, inputs, strict=True)
        ]
        documents = _pairs(prompts, outputs, self.loss)
        return weigh(documents, rows) if self.weighted else documents


def _texts(rows: Columns, column: str, *, nullable: bool = False) -> Sequence[Any]:
    texts = rows[column]
    if set(map(type, texts)) == {str}:
        return texts
    for index, text in enumerate(texts):
        if not isinstance(text, str) and not (nullable and text is None):
            found = "null" if text is None else f"of type {type(text).__name__}, not text"
            raise RowError(index, f"column {column!r} is {found}", "fill it in, or remove the row")
    return texts


def _pairs(prompts: Sequence[str], completions: Sequence[str], loss: Loss) -> list[Document | Skipped]:
    train_prompt = loss == "all"
    return [
        (Span(prompt, train_prompt), Span(completion, True)) if prompt or completion else EMPTY
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
