"""Formats with columns of text: plain text, prompt and completion, Alpaca."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sftkit.api import Columns, Outcome, RowError, Skipped, Span
from sftkit_plugins.formats.options import ColumnFormatter, Loss

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


@dataclass(frozen=True, kw_only=True)
class Text(ColumnFormatter):
    """Plain text. All of it is trained."""

    column: str = "text"
    loss: Loss = "all"

    @property
    def columns_used(self) -> frozenset[str]:
        """See `ColumnFormatter`."""
        return self.with_weight({self.column})

    def documents(self, rows: Columns) -> list[Outcome]:
        """One trained span per row."""
        return [(Span(text, True),) if text else EMPTY for text in _texts(rows, self.column)]


@dataclass(frozen=True, kw_only=True)
class PromptCompletion(ColumnFormatter):
    """A prompt, directly followed by a completion."""

    loss: Loss = "completion"

    @property
    def columns_used(self) -> frozenset[str]:
        """See `ColumnFormatter`."""
        return self.with_weight({"prompt", "completion"})

    def documents(self, rows: Columns) -> list[Outcome]:
        """A span for the prompt and one for the completion."""
        return _pairs(_texts(rows, "prompt"), _texts(rows, "completion"), self.loss)


@dataclass(frozen=True, kw_only=True)
class Alpaca(ColumnFormatter):
    """Instruction, optional input, and output, with the prompt of Stanford Alpaca (Taori et al., 2023).

    The prompt is that of the column ``text`` of the released data: a line break separates ``### Response:`` from the
    output.
    """

    loss: Loss = "completion"

    @property
    def columns_used(self) -> frozenset[str]:
        """See `ColumnFormatter`."""
        return self.with_weight({"instruction", "input", "output"})

    def documents(self, rows: Columns) -> list[Outcome]:
        """A span for the prompt and one for the output. Rows without input use the prompt without input."""
        instructions, outputs = _texts(rows, "instruction"), _texts(rows, "output")
        inputs = _texts(rows, "input", nullable=True) if "input" in rows else [None] * len(outputs)
        prompts = [
            _ALPACA_WITH_INPUT.format(instruction=instruction, input=text)
            if text
            else _ALPACA_WITHOUT_INPUT.format(instruction=instruction)
            for instruction, text in zip(instructions, inputs, strict=True)
        ]
        return _pairs(prompts, outputs, self.loss)


def _texts(rows: Columns, column: str, *, nullable: bool = False) -> Sequence[Any]:
    texts = rows[column]
    if set(map(type, texts)) == {str}:
        return texts
    for index, text in enumerate(texts):
        if not isinstance(text, str) and not (nullable and text is None):
            found = "null" if text is None else f"of type {type(text).__name__}, not text"
            raise RowError(index, f"column {column!r} is {found}", "fill in the text, or remove the row")
    return texts


def _pairs(prompts: Sequence[str], completions: Sequence[str], loss: Loss) -> list[Outcome]:
    train_prompt = loss == "all"
    return [
        (Span(prompt, train_prompt), Span(completion, True)) if prompt or completion else EMPTY
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
