"""`sftkit check` in a terminal: wrong first and in colour, warnings next, the rest in a line, what to do at the end."""

from __future__ import annotations

import pytest

from sftkit.console import showing
from sftkit.console.output import Output
from sftkit.run.verdict import Verdict
from sftkit_commands.check.checks import Report
from sftkit_commands.check.text import show_report

VERDICTS = [
    Verdict("configuration", "ok", "every key, plugin and option is known"),
    Verdict("rows", "warn", "12.0% of the rows were dropped, more than 5%", "look at them with sftkit preview"),
    Verdict("EOS", "ok", "trained in all rows"),
    Verdict("noted", "ok", "columns id, source ignored (20 rows)"),
    Verdict("length", "wrong", "20 completions were cut", "raise data.max_length to 4096", "/data/runs/sft.yaml:3"),
    Verdict("memory", "wrong", "a step takes 90.1 GB, and the device has 78.0 GB", "select the plugin activations"),
]


@pytest.mark.parametrize("width", [60, 80, 140])
def test_wrong_verdicts_come_first_and_the_last_line_names_them(terminal, width):
    shown = terminal(width)
    show_report(Report(VERDICTS))
    lines = shown.written
    assert max(map(len, lines)) <= width
    starts = [line.split()[0] for line in lines if not line.startswith(" ")]
    assert starts == ["wrong", "wrong", "warn", "ok", "ok", "2"]
    assert "ok noted: columns id, source ignored (20 rows)" in lines
    assert "ok configuration, EOS" in lines
    assert lines[-1] == "2 wrong, 1 to look at: fix length, memory, then check again"
    assert shown.screen.buffer[0][0].fg == "red"
    assert "     -> raise data.max_length to 4096" in lines


@pytest.mark.parametrize(
    ("where", "named"),
    [("sft.yaml:1, trian", "trian"), ("train.optim", "train.optim"), ("runs/sft", "configuration")],
)
def test_a_wrong_configuration_is_named_by_its_key(terminal, where, named):
    shown = terminal(80)
    show_report(Report([Verdict("configuration", "wrong", "no such key", "did you mean 'train'?", where)]))
    assert shown.written[-1] == f"1 wrong, 0 to look at: fix {named}, then check again"


def test_verbose_shows_what_is_right_in_full(terminal):
    shown = terminal(80)
    with showing(Output(verbose=True)):
        show_report(Report(VERDICTS))
    assert "ok EOS: trained in all rows" in shown.written


def test_a_pipe_gets_a_line_for_each_verdict(capsys):
    show_report(Report(VERDICTS))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "wrong length: /data/runs/sft.yaml:3: 20 completions were cut -> raise data.max_length to 4096"
    assert len(lines) == 6
