"""Tables, errors and text fit the terminal, and no word, path or command is broken."""

from __future__ import annotations

import re
import sys

import pytest
from rich.text import Text

from sftkit.cli.errors import show_command, show_problems
from sftkit.console import console, show_data, show_metrics, show_table, wrap
from sftkit.errors import Problem
from sftkit.units import size_text

PATH = "/data/projects/fine-tuning/2026/runs/first.yaml:12"
PROBLEMS = [
    Problem("no such key", f"{PATH}, data.max_lenght", "did you mean 'max_length'?"),
    Problem(
        "needs the package flash-attn, which is not installed, and which this machine cannot build by itself",
        "plugin flash_attn",
        'install it with `pip install "flash-attn>=2.8"`, or leave it out with no:flash_attn',
    ),
]
WIDTHS = pytest.mark.parametrize("width", [60, 80, 140])


def words(lines):
    return " ".join(lines).split()


@WIDTHS
def test_errors_are_wrapped_at_spaces_and_say_what_where_and_how_to_fix_it(terminal, width):
    shown = terminal(width)
    show_problems(PROBLEMS)
    assert max(map(len, shown.written)) <= width
    assert shown.written.count("") == 1  # between the two
    whole = [word for problem in PROBLEMS for word in f"error: {problem}".split()]
    assert words(shown.written) == whole
    assert '`pip install "flash-attn>=2.8"`' in "\n".join(shown.written)
    assert sum(line.startswith("  -> ") for line in shown.written) == len(PROBLEMS)


def test_errors_have_colours_for_what_where_and_fix(terminal):
    shown = terminal(100)
    show_problems(PROBLEMS[:1])
    screen = shown.screen
    colours = {screen.buffer[0][0].fg, screen.buffer[0][7].fg, screen.buffer[1][5].fg}
    assert colours == {"red", "cyan", "green"}


def test_no_color_leaves_the_same_text(terminal, monkeypatch):
    shown = terminal(100)
    monkeypatch.setenv("NO_COLOR", "1")
    show_problems(PROBLEMS)
    screen = shown.screen
    assert {screen.buffer[row][column].fg for row in range(6) for column in range(100)} == {"default"}
    assert shown.written[0] == f"error: {PATH}, data.max_lenght: no such key"


def test_piped_errors_are_one_line_each(capsys):
    show_problems(PROBLEMS, place="process 1: ")
    assert capsys.readouterr().err.splitlines() == [f"process 1: error: {problem}" for problem in PROBLEMS]


@WIDTHS
def test_a_path_that_is_longer_than_the_line_is_whole(terminal, width):
    shown, path = terminal(width), "/" + "long/" * 40
    console().print(f"saved to {path} after {'many ' * 30}steps", markup=False)
    assert path in shown.written
    assert max(len(line) for line in shown.written if line != path) <= width


def test_wrap_keeps_styles_and_indents_what_follows():
    lines = wrap([("error:", "red"), ("one two three", "bold")], 12, indent="  ")
    assert [line.plain for line in lines] == ["error: one", "  two three"]
    assert lines[0].spans[0].style == "red"


@pytest.mark.parametrize("width", [40, 60, 80, 140])
def test_tables_fit_and_words_stay_whole(terminal, width):
    shown = terminal(width)
    rows = [("first", 1_234_567, "path/to/a/file.jsonl", "a text of some length that goes on " * 3), ("b", 2, "c", "d")]
    show_table(console(), "Table", ("name", "count", "source", "text"), rows)
    assert max(map(len, shown.written)) <= width
    text = re.sub(r"[│┃━╇]", " ", "\n".join(shown.written))
    for word in ["1,234,567", "path/to/a/file.jsonl", "length"]:
        assert word in text.split()


def test_columns_without_a_value_are_left_out(terminal):
    shown = terminal(80)
    show_table(console(), "", ("name", "fix", "number"), [("a", "", 1), ("b", Text(""), 2.5)])
    assert "fix" not in shown.lines[0]


def test_results_have_no_empty_cell_and_names_and_numbers_for_people(terminal):
    shown = terminal(60)
    metrics = {"train_loss": 2.5, "eval_exact_match_before": 0.0, "eval_exact_match": 0.906}
    show_metrics(console(), {**metrics, "eval_loss_before": 7.46, "eval_loss": 2.77})
    text = "\n".join(shown.lines)
    assert text.index("eval loss") < text.index("eval exact match")
    assert re.search(r"eval loss +│ +7\.4600 │ +2\.7700", text)
    assert re.search(r"eval exact match +│ +0\.0% │ +90\.6%", text)
    assert shown.lines[-1] == "train loss 2.5000"
    assert "_" not in text


def test_results_without_values_from_before_have_no_column_for_them(terminal):
    shown = terminal(60)
    show_metrics(console(), {"train_loss": 2.5})
    assert [word for word in words(shown.lines) if word.isalpha()] == ["Results", "metric", "value", "train", "loss"]


@WIDTHS
def test_the_counts_of_the_data_fit(terminal, width):
    shown = terminal(width)
    counts = {"rows": 12_345, "rows read": 12_346, "tokens": 98_765_432, "trained tokens": 12_345_678}
    show_data(console(), {"train": {**counts, "rows dropped: longer than data.max_length": 1}})
    assert max(map(len, shown.written)) <= width
    assert "98,765,432" in words(shown.written)


def test_text_in_a_pipe_is_as_long_as_it_is(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    console().print("word " * 30 + "end", markup=False)
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert not sys.stdout.isatty()


@WIDTHS
def test_the_command_that_continues_a_run_is_whole(terminal, width):
    shown, command = terminal(width), "sftkit run sft.yaml --output runs/20260601-101500 -p packing -p peft --resume"
    show_command("continue with", command)
    assert shown.written == (["continue with:", command] if width < 100 else [f"continue with: {command}"])


def test_control_characters_of_data_are_shown_and_not_obeyed(terminal):
    shown = terminal(60)
    show_table(console(), "", ("name", "text"), [("a", "back\x08\x1b[2Jspace\ttab"), ("b", "c")])
    console().print("bell\x07\x9b2J", markup=False)
    assert any("back␈␛[2Jspace" in line for line in shown.lines)
    assert shown.lines[-1] == "bell␇�2J"


SIZES = {0: "0 bytes", 999: "999 bytes", 1000: "1.00 kB", 9_996: "10.0 kB", 99_960: "100 kB", 999_600: "1.00 MB"}
SIZES |= {20_500_000: "20.5 MB", 1_234_000_000: "1.23 GB", 2 * 10**12: "2.00 TB"}


@pytest.mark.parametrize(("size", "text"), SIZES.items())
def test_sizes_have_three_digits(size, text):
    assert size_text(size) == text
