"""The report of runs as it is written: what it says, and that nothing in it is executed or loaded."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from typer.testing import CliRunner

from sftkit.api import ConfigError, is_report
from sftkit.cli import app
from sftkit.run.manifest import read_manifest, write_manifest
from sftkit.run.written import remove_run
from sftkit_commands.report import PERIOD
from sftkit_commands.report.facts import source_table
from sftkit_commands.report.page import render
from sftkit_commands.report.reading import read_runs

SECRET = "hf_abcdefghijklmnopqrstuvwxyz012345"  # of the form of a token, and of nobody
START = 1767225600.0  # when the runs that are written by hand start


def entry(step, value, after=None, **more):
    return {"step": step, "time": START + (step if after is None else after), "loss": value, **more}


@pytest.fixture(scope="module")
def page(real_run):
    return render(read_runs([real_run]))


def payload(text):
    """The charts in a page, by name."""
    (found,) = re.findall(r'<script type="application/json" id="chart-data">(.*?)</script>', text, re.DOTALL)
    return {chart["name"]: chart for chart in json.loads(found)}


def column(chart, label):
    at = [one["label"] for one in chart["series"]].index(label)
    return {step: value for step, value in zip(chart["steps"], chart["values"][at], strict=True) if value is not None}


def test_the_charts_have_the_logged_values(page, real_run):
    log = [json.loads(line) for line in (real_run / "log.jsonl").read_text().splitlines()]
    charts = payload(page)
    logged = {one["step"]: one["loss"] for one in log if "loss" in one}
    assert column(charts["loss"], "training") == logged
    assert column(charts["loss"], "evaluation") == {one["step"]: one["eval_loss"] for one in log if "eval_loss" in one}
    memory = {one["step"]: one["memory"] / 1e9 for one in log if "memory" in one}
    assert column(charts["memory"], "memory") == pytest.approx(memory)
    assert {"learning_rate", "grad_norm", "tokens_per_second", "token_accuracy", "eval_loss_by_source"} <= set(charts)
    sources = {one["step"]: one["eval_loss_a"] for one in log if "eval_loss_a" in one}
    assert column(charts["eval_loss_by_source"], "a") == sources
    tokens = {one["step"]: one["trained_tokens_b"] for one in log if "trained_tokens_b" in one}
    assert column(charts["trained_tokens_by_source"], "b") == tokens


def test_the_sources_of_a_run_have_a_table_with_what_was_trained_of_each(page, real_run):
    [run] = read_runs([real_run])
    log = [json.loads(line) for line in (real_run / "log.jsonl").read_text().splitlines()]
    table = dict(source_table(run))
    assert [*table] == ["a", "b"]
    for name, (_, _, trained, share, first, last) in table.items():
        losses = [entry[f"loss_{name}"] for entry in log if f"loss_{name}" in entry]
        assert (first, last) == tuple(f"{loss:.4g}" for loss in (losses[0], losses[-1]))
        tokens = next(entry for entry in reversed(log) if "trained_tokens" in entry)
        assert trained == f"{tokens[f'trained_tokens_{name}']:,}"
        assert share == f"{tokens[f'trained_tokens_{name}'] / tokens['trained_tokens']:.1%}"
        assert trained in page
    assert "Sources of the training data" in page
    assert run.summary()["trained"] == run.manifest["trained"]


def test_a_run_with_one_source_has_no_table_of_sources(write_run):
    run = write_run(log=[{"step": 1, "time": 1.0, "loss": 2.0, "trained_tokens": 5}], data={"train": {"rows": 1}})
    assert source_table(run) == []
    assert "Sources of the training data" not in render([run])


def test_text_of_rows_and_samples_is_never_markup(page, evil):
    assert evil not in page
    assert page.count("&lt;/script&gt;&lt;script&gt;") >= 2, "it is shown in the rows, and in the samples"
    assert page.count("<script") == 2


def test_the_page_forbids_what_it_does_not_contain(page):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.split("style-src")[0]
    assert not re.search(r'(src|href)="(?!#)', page)
    assert "uPlot (v1.6.32) */" in page, "the licence comment of the library is kept"


def test_the_page_says_what_was_done_to_the_rows_and_what_was_trained(page):
    assert "column id ignored" in page
    assert "Trained share of the tokens" in page
    assert "train: a" in page
    assert re.search(r'<span class="trained">Paris is the capital of France\.', page)
    assert "&lt;img src=x" in page
    assert "✓ exact" in page


def test_each_chart_is_described_and_has_a_table(page):
    plots = re.findall(r'class="plot" id="[^"]*" role="img" aria-label="([^"]*)"', page)
    assert len(plots) == len(payload(page)) == page.count("<details><summary>Values</summary>")
    assert all(re.match(r"Line chart of .* by step\. .* 3 values between", one) for one in plots[:1])


@pytest.mark.parametrize(
    ("status", "shown", "error"),
    [
        ("failed", "failed", "the loss is nan in step 7"),
        ("interrupted", "interrupted", "SIGTERM in step 3"),
        ("running", "killed", "no process holds its directory"),
    ],
)
def test_a_run_that_has_not_finished_has_a_report_with_the_reason(write_run, status, shown, error):
    run = write_run(status=status, error=None if shown == "killed" else error, log=[entry(1, 3.0), entry(2, 2.5)])
    text = render([run])
    assert f'<span class="badge {shown}">{shown}</span>' in text
    assert error in text
    assert "so far" in text
    assert "2.5" in text


def test_a_run_that_has_logged_nothing_has_a_report(write_run):
    text = render([write_run(status="failed", error="no memory")])
    assert "no memory" in text
    assert "Nothing has been measured yet" in text
    assert payload(text) == {}


def test_a_half_written_line_is_left_out_and_counted(write_run):
    run = write_run(log=[entry(1, 3.0)])
    with (run.directory / "log.jsonl").open("a") as file:
        file.write('{"step": 2, "ti')
    (again,) = read_runs([run.directory])
    assert [one["step"] for one in again.log] == [1]
    assert "1 lines in the files of run could not be read" in render([again])


def test_a_row_may_have_any_line_break_of_unicode(write_run):
    run = write_run()
    row = {"split": "train", "title": "row 1", "runs": [{"text": "a\u2028b", "kind": "trained", "weight": 1.0}]}
    (run.directory / "rows.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    (again,) = read_runs([run.directory])
    assert (again.rows, again.unread) == ([row], 0)


def test_steps_that_a_resumed_run_repeats_are_shown_once(write_run):
    parts = [{}, {"started": "2026-01-01T00:01:00+00:00", "from_step": 2}]
    before = [entry(step, 10.0 - step) for step in (1, 2, 3, 4)]
    after = [entry(step, 20.0 - step, after=70 + step) for step in (4, 6)]
    run = write_run(parts=parts, log=[*before, *after])
    chart = payload(render([run]))["loss"]
    assert column(chart, "training") == {1: 9.0, 2: 8.0, 4: 16.0, 6: 14.0}
    assert chart["resumed"] == [2]


@pytest.mark.parametrize("number", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_long_run_is_thinned_out_with_its_extremes_and_says_so(write_run, number):
    def loss(step):
        return 100.0 if step == 5_432 else 1.0 + step % 7

    text = render([write_run(log=[entry(step, loss(step)) for step in range(1, number + 1)])])
    drawn = column(payload(text)["loss"], "training")
    assert len(drawn) <= 2000
    assert {1, 5_432, number} <= set(drawn)
    assert drawn == {step: loss(step) for step in drawn}
    assert f"of up to {number:,} that were logged" in text
    assert f"of the {number:,} logged steps" in text


def test_runs_are_compared_by_what_differs_and_by_their_metrics(write_run):
    config = {"model": {"name": "m"}, "data": {}, "train": {"learning_rate": 0.1, "seed": 1}, "plugins": {}}
    other = {**config, "train": {"learning_rate": 0.2, "seed": 1}}
    first = write_run("first", config=config, metrics={"eval_loss": 2.0, "eval_rouge": 0.5}, log=[entry(1, 3.0)])
    second = write_run("second", config=other, metrics={"eval_loss": 1.5, "eval_rouge": 0.25}, log=[entry(1, 2.0)])
    text = render([first, second]).replace("<wbr>", "")
    differences = text.split('id="differences"')[1].split('id="charts"')[0]
    assert "train.learning_rate" in differences
    assert "train.seed" not in differences
    bests = re.findall(r'class="n best">([\d.]+)', text)
    assert bests == ["1.5000", "0.5000"], "the least loss, and the greatest ROUGE"
    assert column(payload(text)["loss"], "second") == {1: 2.0}


def test_a_secret_in_the_configuration_is_not_in_the_report(tmp_path, real_run):
    values = read_manifest(real_run)
    values["config"]["model"]["options"] = {"token": "another-secret"}
    (tmp_path / "run").mkdir()
    write_manifest(tmp_path / "run", {**values, "status": "failed", "error": f"refused: {SECRET}"})
    text = render(read_runs([tmp_path / "run"]))
    assert "refused: ***" in text
    assert SECRET not in text
    assert "another-secret" not in text


def test_the_command_writes_into_the_directory_of_the_run(real_run):
    result = CliRunner().invoke(app, ["report", str(real_run), "--json"])
    assert result.exit_code == 0, result.output
    written = json.loads(result.output)
    assert written["report"] == str(real_run / "report.html")
    assert written["runs"][0]["status"] == "done"
    assert written["runs"][0]["metrics"]["eval_loss"] > 0
    assert is_report(real_run / "report.html")


def test_several_runs_go_into_one_file_here(write_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [str(write_run(name, log=[entry(1, 1.0)]).directory) for name in ("x", "y")]
    assert CliRunner().invoke(app, ["report", *names]).exit_code == 0
    assert "2 runs compared" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_command_replaces_no_file_of_somebody_elses(write_run, tmp_path):
    run, other = write_run(), tmp_path / "page.html"
    other.write_text("<p>mine</p>")
    result = CliRunner().invoke(app, ["report", str(run.directory), "--output", str(other)])
    assert isinstance(result.exception, ConfigError) or result.exit_code == 2
    assert other.read_text() == "<p>mine</p>"


def test_a_watched_report_is_written_until_the_run_has_ended(write_run, monkeypatch):
    run = write_run(status="running", log=[entry(1, 3.0)])
    held, waited = ["process 1"], []
    monkeypatch.setattr("sftkit_commands.report.reading.holder", lambda directory: held[0] if held else None)

    def wait(seconds):
        waited.append(seconds)
        text = (run.directory / "report.html").read_text(encoding="utf-8")
        assert f'http-equiv="refresh" content="{PERIOD}"' in text
        held.clear()

    monkeypatch.setattr("time.sleep", wait)
    assert CliRunner().invoke(app, ["report", str(run.directory), "--watch"]).exit_code == 0
    assert waited == [PERIOD]
    assert 'http-equiv="refresh"' not in (run.directory / "report.html").read_text(encoding="utf-8")


def test_a_watched_report_waits_for_the_run_and_for_one_that_is_resumed(write_run, monkeypatch):
    run = write_run(status="interrupted", log=[entry(1, 3.0)])
    held, later = [], run.directory.with_name("later")
    monkeypatch.setattr("sftkit_commands.report.reading.holder", lambda directory: held[0] if held else None)

    def wait(seconds):
        if later.exists():  # it was resumed, and has ended again
            held.clear()
            return
        shutil.copytree(run.directory, later)
        held.append("process 1")

    monkeypatch.setattr("time.sleep", wait)
    done = CliRunner().invoke(app, ["report", str(later), "--watch"])
    assert f"waiting for a run in {later}" in done.stderr
    assert not held
    assert f"{later}: interrupted, 1 steps" in done.stdout.replace("\n", "")


def test_overwriting_a_run_removes_its_report_and_its_rows_but_no_other_page(real_run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(real_run, copy)
    (copy / "report.html").write_text(render(read_runs([copy])), encoding="utf-8")
    remove_run(copy, read_manifest(real_run))
    assert not (copy / "report.html").exists()
    assert not (copy / "rows.jsonl").exists()
    shutil.copytree(real_run, copy, dirs_exist_ok=True)
    (copy / "report.html").write_text("<p>mine</p>")
    remove_run(copy, read_manifest(real_run))
    assert (copy / "report.html").exists()
