"""Columns of a question and its answer, under the names that data sets use."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sftkit.api import Columns, RowError

#: The columns of a question and its answer; the first pair of which both exist is used.
PAIRS = (
    ("instruction", "response"),
    ("instruction", "generation"),
    ("prompt", "response"),
    ("query", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("problem", "solution"),
    ("user", "assistant"),
    ("input", "output"),
    ("inputs", "targets"),
    ("input", "target"),
    ("input_text", "output_text"),
    ("text_input", "output"),
    ("prompt", "output"),
    ("query", "answer"),
    ("input", "response"),
    ("human", "assistant"),
    ("context", "response"),
)
#: Columns that are part of the question: before it, or after an instruction.
BEFORE = ("definition", "context", "article", "passage")
AFTER = ("input", "context")
REASONING = ("reasoning_content", "reasoning", "thinking")
#: Values of such a column that say whether the answer has reasoning, or how much.
SWITCHES = {"on", "off", "yes", "no", "true", "false", "none", "low", "medium", "high"}
#: An answer that has its reasoning in a column of its own.
_WITH_REASONING = ("input", "content")


@dataclass(frozen=True)
class Pair:
    """The columns of a question and its answer.

    Attributes:
        question: the column of the question.
        answer: the column of the answer.
        before: columns whose text comes before the question.
        after: columns whose text comes after it.
        reasoning: the column of the answer's reasoning, if there is one.
    """

    question: str
    answer: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    reasoning: str | None = None

    @classmethod
    def among(cls, names: Collection[str]) -> Pair | None:
        """The first pair among the names of columns of text."""
        reasoning = next((name for name in REASONING if name in names), None)
        pairs = (*PAIRS, _WITH_REASONING) if reasoning else PAIRS
        for question, answer in pairs:
            if question in names and answer in names:
                after = AFTER if question == "instruction" else ()
                others = [name for name in names if name not in (question, answer)]
                before = () if after else tuple(name for name in BEFORE if name in others)
                return cls(question, answer, before, tuple(name for name in after if name in others), reasoning)
        return None

    @property
    def columns(self) -> frozenset[str]:
        """The columns that it uses."""
        reasoning = () if self.reasoning is None else (self.reasoning,)
        return frozenset({self.question, self.answer, *self.before, *self.after, *reasoning})

    def question_of(self, rows: Columns, index: int) -> str:
        """The question of a row with the texts before and after it, separated by blank lines.

        Raises:
            RowError: if the question is null, or a column is not text.
        """
        question = text_of(rows, self.question, index)
        if not self.before and not self.after:
            return question
        before = [text_of(rows, name, index, nullable=True) for name in self.before]
        after = [text_of(rows, name, index, nullable=True) for name in self.after]
        return "\n\n".join(text for text in (*before, question, *after) if text)

    def answer_of(self, rows: Columns, index: int) -> str:
        """The answer of a row.

        Raises:
            RowError: if it is null or not text.
        """
        return text_of(rows, self.answer, index)

    def reasoning_of(self, rows: Columns, index: int, notes: set[str]) -> str:
        """The reasoning of a row; empty if there is none. A switch, such as ``on``, is noted as ignored.

        Raises:
            RowError: if it is not text.
        """
        text = text_of(rows, self.reasoning, index, nullable=True) if self.reasoning else ""
        if text.strip().lower() in SWITCHES:
            notes.add(f"column {self.reasoning} ignored where it is a switch, such as on or off")
            return ""
        return text


def text_of(rows: Columns, column: str, index: int, *, nullable: bool = False) -> str:
    """The text in a column of a row; empty for null if that is allowed.

    Raises:
        RowError: if it is not text.
    """
    text: Any = rows[column][index]
    if isinstance(text, str):
        return text
    if text is None and nullable:
        return ""
    found = "null" if text is None else f"of type {type(text).__name__}, not text"
    raise RowError(index, f"column {column!r} is {found}", "fill in the text, or remove the row")
