"""Formats of text without a chat template: plain text, prompt and completion, Alpaca, and segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sftkit.api import Columns, Document, Formatted, Outcome, RowError, Skipped, Span
from sftkit_plugins.formats.conversation import Message
from sftkit_plugins.formats.options import ColumnFormatter, Loss
from sftkit_plugins.formats.pairs import Pair, text_of
from sftkit_plugins.formats.reading import Rules
from sftkit_plugins.formats.side_columns import SideColumns, names_of

EMPTY = Skipped("empty text")

_ALPACA_START = "Below is an instruction that describes a task"
_ALPACA = f"{_ALPACA_START}. Write a response that appropriately completes the request.\n\n"
_ALPACA_WITH_INPUT = (
    f"{_ALPACA_START}, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
)
_ALPACA_INSTRUCTION = "### Instruction:\n{}\n\n"
_ALPACA_INPUT = "### Input:\n{}\n\n"
_ALPACA_RESPONSE = "### Response:\n"


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
class Segments(ColumnFormatter):
    """Texts with a label each, which says whether it is trained (axolotl). Nothing is added to them."""

    column: str = "segments"
    loss: Loss = "completion"

    @property
    def adds_special_tokens(self) -> bool:
        """False: the segments contain them."""
        return False

    @property
    def columns_used(self) -> frozenset[str]:
        """See `ColumnFormatter`."""
        return self.with_weight({self.column})

    def documents(self, rows: Columns) -> list[Outcome]:
        """A span for each segment."""
        return [self._document(value, index) for index, value in enumerate(rows[self.column])]

    def _document(self, value: Any, index: int) -> Document | Skipped:
        spans = []
        for number, segment in enumerate(value or (), start=1):
            given = segment if isinstance(segment, dict) else {}
            text, label = given.get("text"), given.get("label")
            if not isinstance(text, str) or label not in (0, 1, None):
                fix = "write each segment as {label, text}, with true, false or null as label"
                raise RowError(index, f"column {self.column!r}, segment {number} is not a text with a label", fix)
            spans.append(Span(text, bool(label) or self.loss == "all"))
        return spans if any(span.text for span in spans) else EMPTY


@dataclass(frozen=True, kw_only=True)
class Prompted(ColumnFormatter):
    """Text in which an answer follows a prompt, after a system message and earlier turns if there are any.

    Earlier answers are trained like the last one, and end with the tokenizer's EOS.

    Attributes:
        side: the columns of the system message and of earlier turns, if there are any.
        eos: the tokenizer's EOS.
    """

    loss: Loss = "completion"
    side: SideColumns | None = None
    eos: str = ""

    def completed(self, rows: Columns, index: int, start: str, prompt: str, answer: str) -> Outcome:
        """A document of one row.

        Args:
            rows: the batch.
            index: position of the row in it.
            start: what comes before all turns, after the system message.
            prompt: the last prompt, as it is written.
            answer: the last answer.
        """
        notes: set[str] = set()
        trained = self.loss == "all"
        side = self.side or SideColumns()
        system = side.read_system(rows, index)
        before = f"{system}\n\n{start}" if system else start
        spans = []
        for question, reply in _pairs_of(side.read_history(rows, index, Rules(), notes), index, side.history):
            spans += [Span(before + self.earlier(question), trained), Span(reply + self.eos, True)]
            before = "\n\n"
        if not spans and not system and not prompt and not answer:
            return EMPTY
        spans += [Span(before + prompt, trained), Span(answer, True)]
        return Formatted([spans], sorted(notes)) if notes else spans

    def earlier(self, question: str) -> str:
        """An earlier prompt, as it is written."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class PromptCompletion(Prompted):
    """A prompt, followed by a completion: directly, or after a line break.

    Attributes:
        pair: the columns of the prompt and of the completion.
        between: what separates them.
    """

    pair: Pair = field(default_factory=lambda: Pair("prompt", "completion"))
    between: str = ""

    @property
    def columns_used(self) -> frozenset[str]:
        """See `ColumnFormatter`."""
        return self.with_weight(self.pair.columns | names_of(self.side))

    def documents(self, rows: Columns) -> list[Outcome]:
        """A span for the prompt and one for the completion."""
        if self.between or self.side or self.pair.before or self.pair.after:
            return [self._document(rows, index) for index in range(len(rows[self.pair.answer]))]
        train_prompt = self.loss == "all"
        return [
            (Span(prompt, train_prompt), Span(completion, True)) if prompt or completion else EMPTY
            for prompt, completion in zip(_texts(rows, self.pair.question), _texts(rows, self.pair.answer), strict=True)
        ]

    def _document(self, rows: Columns, index: int) -> Outcome:
        prompt, answer = self.pair.question_of(rows, index), self.pair.answer_of(rows, index)
        return self.completed(rows, index, "", prompt + self.between if prompt else "", answer)

    def earlier(self, question: str) -> str:
        """See `Prompted`."""
        return question + self.between


@dataclass(frozen=True, kw_only=True)
class Alpaca(Prompted):
    """Instruction, optional input, and output, with the prompt of Stanford Alpaca (Taori et al., 2023).

    The prompt is that of the column ``text`` of the released data: a line break separates ``### Response:`` from the
    output.
    """

    @property
    def columns_used(self) -> frozenset[str]:
        """See `ColumnFormatter`."""
        return self.with_weight({"instruction", "input", "output"} | names_of(self.side))

    def documents(self, rows: Columns) -> list[Outcome]:
        """A span for the prompt and one for the output. Rows without input use the prompt without input."""
        instructions, outputs = _texts(rows, "instruction"), _texts(rows, "output")
        inputs = _texts(rows, "input", nullable=True) if "input" in rows else [None] * len(outputs)
        outcomes: list[Outcome] = []
        for index, (instruction, text, output) in enumerate(zip(instructions, inputs, outputs, strict=True)):
            start, prompt = _ALPACA_WITH_INPUT if text else _ALPACA, _alpaca_turn(instruction, text)
            if self.side:
                outcomes.append(self.completed(rows, index, start, prompt, output))
            else:
                outcomes.append((Span(start + prompt, self.loss == "all"), Span(output, True)))
        return outcomes

    def earlier(self, question: str) -> str:
        """See `Prompted`."""
        return _alpaca_turn(question, None)


def _alpaca_turn(instruction: str, text: str | None) -> str:
    given = _ALPACA_INPUT.format(text) if text else ""
    return f"{_ALPACA_INSTRUCTION.format(instruction)}{given}{_ALPACA_RESPONSE}"


def _pairs_of(messages: Sequence[Message], index: int, column: str | None) -> list[tuple[str, str]]:
    """Earlier turns as questions with their answers.

    Raises:
        RowError: if they are not that, and so need a chat template.
    """
    questions, answers = messages[::2], messages[1::2]
    roles = [(question["role"], answer["role"]) for question, answer in zip(questions, answers, strict=False)]
    texts = [message.get("content") for message in messages]
    if len(questions) != len(answers) or set(roles) - {("user", "assistant")} or None in texts:
        what = f"column {column!r} is not a list of questions with answers"
        raise RowError(index, what, "write [[question, answer], ...], or use a tokenizer with a chat template")
    return [(str(question), str(answer)) for question, answer in zip(texts[::2], texts[1::2], strict=True)]


def _texts(rows: Columns, column: str, *, nullable: bool = False) -> Sequence[Any]:
    texts = rows[column]
    if set(map(type, texts)) == {str}:
        return texts
    for index in range(len(texts)):
        text_of(rows, column, index, nullable=nullable)
    return texts
