"""Text that is wrapped at spaces, and never inside a word, a path or a command."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.style import Style
from rich.text import Text

#: What stays on one line: `code`, the installation of a package, and whatever has no space.
_UNBROKEN = re.compile(r"(?:`[^`\n]+`|pip install (?:\"[^\"]*\"|\S)+|\S)(?:`[^`\n]+`|[^\s`])*|`")

#: Control characters, which may come from data and would be commands to the terminal, as pictures of them.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
TAB = 4


def visible(text: str) -> str:
    """A text of the same length, with a visible character for each control character but line breaks and tabs."""
    return text.translate(_PICTURES)


def words_of(text: str) -> list[str]:
    """The parts of a text that stay on one line each."""
    return _UNBROKEN.findall(text)


def longest_word(text: str) -> int:
    """The width of the longest part of a text that stays on one line."""
    return max(map(cell_len, words_of(text)), default=0)


def wrap(parts: Iterable[tuple[str, str | Style]], width: int, indent: str = "") -> list[Text]:
    """Lines of styled text. A word that is longer than a line has a line for itself, and is not broken.

    Args:
        parts: texts, each with its style; a line break in a text begins a new line.
        width: of a line, in cells.
        indent: before each line but the first.
    """
    lines, line, used = [], Text(), 0
    for text, style in parts:
        for number, paragraph in enumerate(text.split("\n")):
            if number:
                lines.append(line)
                line, used = Text(indent), 0
            for word in words_of(paragraph):
                length = cell_len(word)
                if used and line.cell_len + 1 + length > width:
                    lines.append(line)
                    line, used = Text(indent), 0
                line.append(" " * bool(used))
                line.append(word, style)
                used += 1
    return [*lines, line]


def wrapped(text: Text, width: int) -> Text:
    """A text with line breaks at spaces; spaces elsewhere are kept, and a word that is longer than a line is whole."""
    text = text.copy()
    text.expand_tabs(TAB)
    cuts: list[int] = []
    start = 0
    for word in _UNBROKEN.finditer(text.plain):
        if (last := text.plain.rfind("\n", start, word.end())) >= 0:
            start = last + 1
        if cell_len(text.plain[start : word.end()]) > width and text.plain[start : word.start()].strip():
            start = word.start()
            cuts.append(start)
    lines = text.divide(cuts)
    for line in lines[:-1]:
        line.rstrip()
    return Text("\n").join(lines)


def fitting(parts: Sequence[tuple[int, str]], width: int, between: str = " · ") -> str:
    """As many of some parts as fit a line, in their order.

    Args:
        parts: texts with their rank; those of the lowest rank are kept first.
        width: of the line, in cells.
        between: what separates two parts.
    """
    kept: set[int] = set()
    for index in sorted(range(len(parts)), key=lambda index: parts[index][0]):
        line = between.join(text for at, (_, text) in enumerate(parts) if at in kept or at == index)
        if cell_len(line) > width:
            break
        kept.add(index)
    return between.join(text for at, (_, text) in enumerate(parts) if at in kept)
