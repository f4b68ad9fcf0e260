"""What the chat shows: text that wraps at words while it arrives, and two answers side by side."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from sftkit_commands.chat.speaker import Answer

WIDE = 100  # columns from which two answers are shown side by side
_PIECES = re.compile(r"\n|[^\S\n]+|[^\s]+")
#: Characters that a terminal would act on. A model can write them, so they are shown as a sign instead.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_STOPPED = {
    "length": "stopped after {tokens} tokens: /set max_new_tokens=N allows more",
    "context": "stopped: the context window is full; /undo or /reset makes room",
    "interrupted": "stopped by Ctrl-C",
}


class Writer:
    """Writes text that arrives in pieces, and breaks lines between words; lines in code blocks stay as they are.

    Args:
        screen: the terminal.
        indent: written in front of each line.
    """

    def __init__(self, screen: Console, indent: str = "") -> None:
        self.screen, self.indent = screen, indent
        self._column, self._waiting, self._line, self._code = 0, "", "", False

    def write(self, text: str) -> None:
        """Write what is complete; the last word waits for its end."""
        self._waiting += _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)
        pieces = _PIECES.findall(self._waiting)
        last = pieces.pop() if pieces and not pieces[-1].isspace() and cell_len(pieces[-1]) < self._width else ""
        for piece in pieces:
            self._put(piece)
        self._waiting = last
        self.screen.file.flush()

    def end(self) -> None:
        """Write the rest, and end the line."""
        for piece in _PIECES.findall(self._waiting):
            self._put(piece)
        self._waiting = ""
        if self._column:
            self._put("\n")
        self.screen.file.flush()

    @property
    def _width(self) -> int:
        return max(self.screen.width - len(self.indent), 20)

    def _put(self, piece: str) -> None:
        if piece == "\n":
            self._code ^= self._line.lstrip().startswith("```")
            self._raw("\n")
            self._column, self._line = 0, ""
            return
        self._line += piece
        blank, words = piece.isspace(), piece.expandtabs(4)
        wraps = not self._code and not self._line.lstrip().startswith("```")
        if wraps and self._column and self._column + cell_len(words) > self._width:
            self._raw("\n")
            self._column = 0
            if blank:
                return
        for part in _cut(words, self._width) if wraps else [words]:
            if wraps and self._column and self._column + cell_len(part) > self._width:
                self._raw("\n")
                self._column = 0
            self._raw(part if self._column else self.indent + part)
            self._column += cell_len(part)

    def _raw(self, text: str) -> None:
        self.screen.file.write(text)


def _cut(word: str, width: int) -> list[str]:
    """A word in parts that fit into a line: between wide characters, which need no blanks, or where it is too long."""
    if cell_len(word) == len(word) <= width:
        return [word]
    parts, part = [], ""
    for char in word:
        if part and (cell_len(part + char) > width or cell_len(char) == 2):
            parts.append(part)
            part = ""
        part += char
    return [*parts, part]


def note(screen: Console, text: str, style: str = "dim") -> None:
    """Print a line of the chat itself, wrapped at words."""
    screen.print(Text(text, style=style), soft_wrap=False)


def show_help(screen: Console, lines: dict[str, str]) -> None:
    """Print commands and what they do."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, what in lines.items():
        table.add_row(Text(name), Text(what))
    screen.print(table, soft_wrap=False)


def show_end(screen: Console, answer: Answer) -> None:
    """Say why an answer ended, unless the model ended it."""
    if reason := _STOPPED.get(answer.stopped):
        note(screen, f"[{reason.format(tokens=answer.tokens)}]", "yellow")


def side_by_side(screen: Console, answers: dict[str, Answer]) -> None:
    """Print answers in columns, by the names of the models."""
    table = Table(show_edge=False, pad_edge=False, expand=True, show_lines=False, header_style="bold")
    for name in answers:
        table.add_column(Text(name), ratio=1, overflow="fold")
    table.add_row(
        *(Text(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", answer.text.strip())) for answer in answers.values())
    )
    ends = [_STOPPED.get(answer.stopped, "").format(tokens=answer.tokens) for answer in answers.values()]
    if any(ends):
        table.add_row(*(Text(end, style="yellow") for end in ends))
    screen.print(table, soft_wrap=False)
