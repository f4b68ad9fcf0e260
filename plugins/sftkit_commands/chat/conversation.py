"""The turns of a chat."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sftkit.api import ConfigError, Problem

Message = dict[str, str]


@dataclass
class Conversation:
    """The messages so far, for each model with its own answers.

    Attributes:
        system: the system message; empty for none.
    """

    system: str = ""
    _turns: list[tuple[str, list[str]]] = field(default_factory=list)
    _question: str | None = None

    @property
    def turns(self) -> int:
        """The number of questions with their answers."""
        return len(self._turns)

    def ask(self, question: str) -> None:
        """Add a question, which has no answer yet."""
        self._question = question

    def answered(self, answers: list[str]) -> None:
        """Add the answers to the question, one of each model."""
        if self._question is not None:
            self._turns.append((self._question, answers))
        self._question = None

    def undo(self) -> str | None:
        """Take back the last question and its answers; returns the question, None if there is none."""
        question, self._question = self._question, None
        return question if question is not None else self._turns.pop()[0] if self._turns else None

    def reset(self) -> None:
        """Take back everything but the system message."""
        self._turns.clear()
        self._question = None

    def messages(self, speaker: int = 0) -> list[Message]:
        """The messages that a model has seen, with its own answers."""
        made = [{"role": "system", "content": self.system}] if self.system else []
        for question, answers in self._turns:
            made += [{"role": "user", "content": question}, {"role": "assistant", "content": answers[speaker]}]
        if self._question is not None:
            made.append({"role": "user", "content": self._question})
        return made


def save_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows to a JSON Lines file, which is made if there is none.

    Raises:
        ConfigError: if the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    except OSError as error:
        raise ConfigError(Problem(f"cannot be written: {error.strerror or error}", str(path), "name a file")) from error
