"""The preview in a terminal: what is trained shows without colour vision, padding is counted, words stay whole."""

from __future__ import annotations

import pytest

from sftkit.console import console
from sftkit.run.rows import TokenPiece, TokenRow
from sftkit_commands.preview.text import print_rows

SENTENCE = ["", "a", "sentence", "with", "several", "words"][1:]


def pieces():
    words = [TokenPiece(f"{word} ", (5,), at, "context") for at, word in enumerate(SENTENCE * 5, 1)]
    trained = [TokenPiece(f"answer{n} ", (6,), 100 + n, "trained") for n in range(20)]
    end = TokenPiece("</s>", (2,), 120, "trained", special=True)
    padding = [TokenPiece("<pad>", (0,), 121 + n, "padding", special=True) for n in range(37)]
    return TokenRow(1, (TokenPiece("<s>", (1,), 0, "context", special=True), *words, *trained, end, *padding))


@pytest.mark.parametrize("width", [60, 80, 140])
def test_words_are_whole_and_padding_is_counted(terminal, width):
    shown = terminal(width)
    print_rows(console(), [pieces()], ids=False)
    lines = shown.written
    assert max(map(len, lines)) <= width
    text = " ".join(lines)
    assert text.split().count("sentence") == 5
    assert "padding x 37" in text
    assert "<pad>" not in text


def test_trained_tokens_have_a_background_and_special_ones_differ(terminal):
    shown = terminal(200)
    print_rows(console(), [pieces()], ids=False)
    screen = shown.screen
    row = next(number for number, line in enumerate(screen.display) if line.startswith("<s>a sentence"))
    cells = [screen.buffer[row][column] for column in range(200)]
    special, context, trained = cells[0], cells[4], cells[screen.display[row].index("answer")]
    assert context.bg == "default"
    assert trained.bg not in ("default", "red", "green")
    assert special.fg != context.fg


def test_without_colour_marks_show_what_is_trained(terminal, monkeypatch):
    shown = terminal(80)
    monkeypatch.setenv("NO_COLOR", "1")
    print_rows(console(), [pieces()], ids=False)
    text = " ".join(shown.written)
    assert "⟦answer0" in text
    assert "</s>⟧" in text
    assert "‹padding x 37›" in text
