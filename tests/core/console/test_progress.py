"""Progress in a terminal: one live line that never wraps, above it the history; plain lines elsewhere."""

from __future__ import annotations

import pytest

from sftkit.console import Display, console, output, show_table, showing, stage, working
from sftkit.console.output import Output

WIDTHS = pytest.mark.parametrize("width", [60, 80, 140, 200])
LOGS = {
    "loss": 12.3456,
    "tokens_per_second": 123_456.7,
    "learning_rate": 2e-5,
    "grad_norm": 1.25,
    "epoch": 1.5,
    "token_accuracy": 0.5,
    "trained_tokens": 1_000_000,
}


def train(steps=(1, 2)):
    """A display in the middle of a training of many steps."""
    display = Display()
    display.expect(98_765)
    display.start(completed=12_000)
    for number in steps:
        display.step(12_000 + number)
        display.values(12_000 + number, LOGS)
    return display


@pytest.fixture(autouse=True)
def seconds(monkeypatch):
    """A clock that goes on by ten seconds whenever it is read by the display."""
    ticks = iter(range(0, 10_000_000, 10))
    monkeypatch.setattr("sftkit.console.display.time.monotonic", lambda: float(next(ticks)))


@WIDTHS
def test_the_live_line_fits_and_the_losses_stay_above_it(terminal, width):
    shown = terminal(width)
    with working("training"):
        display = train()
        display.step(12_003)
        console().print("the line is drawn again")
        lines = shown.lines
        display.close()
    assert max(map(len, shown.written)) <= width
    assert [line.split(" · ")[0] for line in lines if "· loss" in line][:2] == ["step 12001/98765", "step 12002/98765"]
    assert "step 12003/98765 · loss 12.3456" in lines[-1]
    assert "left" in lines[-1]
    assert len(lines[-1]) <= width - 2  # or a ^C would wrap
    assert "━" in lines[-1] or width < 100


@WIDTHS
def test_speed_is_shown_in_tokens_and_where_it_fits_in_steps(terminal, width):
    shown = terminal(width)
    display = train(steps=(1,))
    display.close()
    line = shown.lines[0]
    assert line.startswith("step 12001/98765 · loss 12.3456")
    assert ("123,457 tokens/s" in line) == (width >= 80)
    assert ("learning rate 2e-05" in line) == (width >= 140)


def test_without_tokens_the_speed_is_in_steps(terminal):
    shown = terminal(60)
    display = Display()
    display.expect(100)
    display.start()
    display.step(5)
    console().print("")
    assert "s/step" in shown.lines[-1] or "steps/s" in shown.lines[-1]
    display.close()


@WIDTHS
def test_stages_are_a_spinner_that_leaves_nothing(terminal, width):
    shown = terminal(width)
    with working("loading the tokenizer"):
        assert shown.lines[-1].endswith("loading the tokenizer")
        stage("a stage with a long name " * 20)
        console().print("said meanwhile")
        assert max(map(len, shown.written)) <= width
        assert "a stage with a long name" in shown.lines[-1]
    assert shown.lines == ["said meanwhile"]


def test_what_an_inner_stage_replaced_is_shown_again(terminal):
    shown = terminal(60)
    with working("outer"):
        with working("inner"):
            assert "inner" in shown.lines[-1]
        console().print("")
        assert "outer" in shown.lines[-1]


def test_an_evaluation_shows_its_batches(terminal):
    shown = terminal(80)
    with working("training"):
        display = Display()
        display.evaluating(3, 12)
        console().print("")
        assert shown.lines[-1].endswith("evaluating 3/12")
        display.expect(100)
        display.start()
        display.evaluating(4)
        console().print("")
        assert "evaluating 4" in shown.lines[-1]
        display.values(0, {"eval_loss": 1.5, "eval_token_accuracy": 0.25, "eval_runtime": 3.0})
        display.close()
    assert shown.lines[-1] == "step   0/100 · eval loss 1.5000 · token accuracy 25.0%"


def test_a_pipe_gets_a_line_for_each_stage_and_log_entry(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as in some CI systems: a log is no terminal for a live line
    monkeypatch.setenv("COLUMNS", "60")
    with working("loading the tokenizer", lines=True):
        stage("preparing the data")
        monkeypatch.delenv("FORCE_COLOR")
        train().close()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:2] == ["preparing the data"]
    assert lines[2].startswith("step 12001/98765 · loss 12.3456 · 123,457 tokens/s")
    assert "learning rate 2e-05" in lines[2]
    assert "\r" not in "".join(lines)


def test_quiet_shows_no_progress_but_results(terminal):
    shown = terminal(80)
    with showing(Output(quiet=True)):
        with working("loading"):
            train().close()
            show_table(console(), "Samples", ("a",), [("shown while it works",)])
        assert output().quiet
        show_table(console(), "Results", ("metric", "value"), [("loss", 1.5)])
    assert shown.lines[0] == "Results"
