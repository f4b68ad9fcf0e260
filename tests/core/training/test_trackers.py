"""Experiment trackers: one run of each per run, with its configuration and final metrics."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
from transformers.integrations import TensorBoardCallback

from sftkit.errors import RunError
from sftkit.training.trackers import flattened

TRACKED = {"report_to": "tensorboard", "save_strategy": "steps", "save_steps": 1, "logging_steps": 1}


@pytest.fixture
def events(monkeypatch):
    """The events of a run: its scalars by name, as step and value, and the reported configuration."""
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def read(result):
        (directory,) = Path(result.directory, "runs").iterdir()
        found = reading.EventAccumulator(str(directory))
        found.Reload()
        scalars = {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}
        (text,) = found.Tensors("args/text_summary")[-1].tensor_proto.string_val
        return scalars, json.loads(text)

    return read


def test_a_tracker_gets_configuration_and_final_metrics(make_run, held_out, events, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "very-secret-value")
    train = {**TRACKED, "run_name": "very-secret-value", "max_steps": 1}
    result = make_run(eval=held_out[:2], train=train, plugins=["neftune:alpha=3"]).run()
    scalars, configuration = events(result)
    assert scalars["eval/final_loss"][0] == (1, pytest.approx(result.metrics["eval_loss"]))
    assert configuration["plugins.neftune.alpha"] == 3
    assert configuration["rows.train.rows"] == 8
    assert configuration["versions.torch"]
    assert configuration["logging_steps"] == 1
    assert configuration["run_name"] == "***"


@pytest.mark.slow
def test_a_tracker_gets_loss_and_tokens_of_each_source_under_the_names_of_the_log(make_run, events, tmp_path, rows):
    files = []
    for name in ("code", "chat"):
        files.append(str(tmp_path / f"{name}.jsonl"))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    scalars, _ = events(make_run(data={"train": files}, plugins=["no:checks"], train=TRACKED).run())
    entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    for name in (f"{kind}_{source}" for kind in ("loss", "trained_tokens") for source in ("code", "chat")):
        logged = [(entry["step"], entry[name]) for entry in entries if "grad_norm" in entry and name in entry]
        assert scalars[f"train/{name}"][: len(logged)] == [(step, pytest.approx(value)) for step, value in logged]
        assert logged


def test_a_resumed_run_continues_the_run_of_the_tracker(make_run, events):
    make_run(train=TRACKED).run()
    result = make_run(train={**TRACKED, "max_steps": 3}, resume=True).run()
    assert [step for step, _ in events(result)[0]["train/loss"]] == [1, 2, 3]


@pytest.mark.slow
def test_a_run_that_replaces_another_has_a_tracker_run_of_its_own(make_run, events):
    make_run(train={**TRACKED, "max_steps": 3}).run()
    result = make_run(train=TRACKED, overwrite=True).run()
    assert [step for step, _ in events(result)[0]["train/loss"]] == [1, 2]


def test_a_tracker_that_cannot_start_is_an_error_before_weights_are_read(make_run, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "file" / "events"))
    monkeypatch.setattr("sftkit.run.stages.Stages.load_model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(RunError, match=r"tensorboard cannot start: .* -> correct its settings, or remove tensorboard"):
        make_run(train=TRACKED).run()
    assert not list((tmp_path / "run").glob("*"))


def test_a_tracker_that_fails_later_does_not_end_the_run(make_run, monkeypatch, caplog):
    calls = []

    def failing(self, *_, **__):
        calls.append(1)
        raise OSError("no connection")

    monkeypatch.setattr(TensorBoardCallback, "on_log", failing)
    with caplog.at_level(logging.WARNING, "sftkit"):
        assert make_run(train=TRACKED).run().status == "trained"
    assert len(calls) == 1
    assert caplog.text.count("tensorboard failed at step 1, and is not used any more: no connection") == 1


@pytest.mark.slow
def test_wandb_continues_its_run_offline(make_run, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    make_run(train={**TRACKED, "report_to": "wandb"}).run()
    result = make_run(train={**TRACKED, "report_to": "wandb", "max_steps": 3}, resume=True).run()
    assert wandb.run is None
    run = json.loads((result.directory / "manifest.json").read_text())["trackers"]["wandb"]
    assert {path.name.rpartition("-")[2] for path in tmp_path.glob("wandb/offline-run-*")} == {run}


@pytest.mark.slow
def test_mlflow_continues_its_run(make_run, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="needs mlflow, which the test environment lacks")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    make_run(train={**TRACKED, "report_to": "mlflow"}).run()
    make_run(train={**TRACKED, "report_to": "mlflow", "max_steps": 3}, resume=True).run()
    (run,) = mlflow.search_runs(output_format="list")
    assert (run.info.status, run.info.run_name) == ("FINISHED", "run")
    assert run.data.params["rows.train.rows"] == "8"


@pytest.mark.slow
def test_trackio_continues_its_run(make_run, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio", reason="needs trackio, which the test environment lacks")
    make_run(train={**TRACKED, "report_to": "trackio", "project": "tested"}).run()
    make_run(train={**TRACKED, "report_to": "trackio", "project": "tested", "max_steps": 3}, resume=True).run()
    (run,) = trackio.Api().runs("tested")
    assert run.name.startswith("run-")


SLOW = [pytest.param(names, marks=pytest.mark.slow) for names in (["none"], [])]


@pytest.mark.parametrize("reports", ["none", *SLOW])
def test_without_trackers_none_is_imported(make_run, reports, monkeypatch):
    monkeypatch.setattr("sftkit.training.trackers.rehearsed_arguments", lambda *_: pytest.fail("asked for trackers"))
    made = make_run(train={"report_to": reports, "max_steps": 0}, eval=[{"prompt": "a", "completion": "b"}]).run()
    assert json.loads((made.directory / "manifest.json").read_text())["trackers"] == {}


def test_nested_settings_become_dotted_names():
    assert flattened({"a": {"b (c)": 1, "d": {}}, "e": [2]}) == {"a.b _c_": 1, "e": [2]}


def test_the_arguments_that_trackers_record_have_no_secrets(in_process, tmp_path, monkeypatch):
    seen = []

    def stop(*_):
        seen.extend(sys.argv)
        raise SystemExit

    monkeypatch.setattr("sftkit.cli.options.gather", stop)
    in_process("run", "model.options.token=hf_abcdefghijklmnopqrst", "-o", tmp_path)
    assert "model.options.token=***" in seen
