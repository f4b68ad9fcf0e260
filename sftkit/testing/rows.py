"""Small rows of the formats that plugins read, each with a number in it, so that no two are the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sftkit.errors import nearest


def sample_rows(form: str = "messages", rows: int = 8, first: int = 0) -> list[dict[str, Any]]:
    """Rows of one format.

    Args:
        form: ``messages``, ``prompt_completion``, ``text``, or another of `FORMS`.
        rows: how many.
        first: the number in the first row, so that held-out rows can differ from training rows.

    Raises:
        ValueError: if there is no such format.
    """
    if form not in FORMS:
        raise ValueError(f"no format {form!r}: {nearest(form, FORMS) or 'the formats are ' + ', '.join(FORMS)}")
    return [FORMS[form](number) for number in range(first, first + rows)]


def _question(number: int) -> str:
    return f"What is {number} plus one?"


def _answer(number: int) -> str:
    return f"It is {number + 1}." + " Yes, it is." * (number % 3)  # of several lengths


def _messages(number: int) -> dict[str, Any]:
    turns = [{"role": "user", "content": _question(number)}, {"role": "assistant", "content": _answer(number)}]
    return {"messages": turns}


def _conversations(number: int) -> dict[str, Any]:
    turns = [{"from": "human", "value": _question(number)}, {"from": "gpt", "value": _answer(number)}]
    return {"conversations": turns}


#: The formats, each with the row of a number.
FORMS: dict[str, Callable[[int], dict[str, Any]]] = {
    "messages": _messages,
    "prompt_completion": lambda number: {"prompt": _question(number) + "\n", "completion": _answer(number)},
    "text": lambda number: {"text": f"{_question(number)} {_answer(number)}"},
    "instruction": lambda number: {"instruction": _question(number), "input": "", "output": _answer(number)},
    "question_answer": lambda number: {"question": _question(number), "answer": _answer(number)},
    "conversations": _conversations,
}
