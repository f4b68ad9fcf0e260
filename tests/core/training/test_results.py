"""The metrics of a run are those of the model that it saves; a run without steps evaluates; a finished one stays."""

from __future__ import annotations

import json
import sys

import pytest
from transformers import AutoModelForCausalLM, EarlyStoppingCallback, TrainerCallback
from typer.testing import CliRunner

from sftkit.cli import app
from sftkit.errors import RunError
from sftkit.run.pipeline import Pipeline
from sftkit.testing import tiny_model, tiny_tokenizer

EACH_STEP = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "logging_steps": 1}
BEST = {**EACH_STEP, "load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
WORSE = {"learning_rate": 0.3, "lr_scheduler_type": "constant", "max_steps": 4}  # after the first step


def manifest_of(result):
    return json.loads((result.directory / "manifest.json").read_text())


def evaluated(make_run, model, held_out, name="again", **options):
    """The metrics of a model as it is."""
    return make_run(name, model=model, eval=held_out, train={"max_steps": 0}, **options).run().metrics


def test_the_metrics_are_those_of_the_best_model_when_it_is_saved(make_run, held_out, log_of):
    result = make_run(eval=held_out, train={**BEST, **WORSE}).run()
    losses = [entry["eval_loss"] for entry in log_of(result) if "eval_loss" in entry]
    assert min(losses) < losses[-1]
    assert result.metrics["eval_loss"] == min(losses)
    assert manifest_of(result)["metrics"] == result.metrics
    saved = AutoModelForCausalLM.from_pretrained(result.directory)
    again = evaluated(make_run, saved, held_out)
    assert again["eval_loss"] == pytest.approx(result.metrics["eval_loss"], rel=1e-5)
    assert again["eval_token_accuracy"] == pytest.approx(result.metrics["eval_token_accuracy"])


@pytest.mark.parametrize(
    "train",
    [{"eval_strategy": "steps", "eval_steps": 2, "eval_delay": 9}, {"eval_strategy": "no"}],
    ids=["delay", "no"],
)
def test_a_model_that_was_not_evaluated_when_training_ended_is_evaluated_then(make_run, held_out, train):
    result = make_run(eval={"a": held_out, "b": held_out[:2]}, train={**train, "max_steps": 3}).run()
    again = evaluated(make_run, result.model, {"a": held_out, "b": held_out[:2]})
    for name in ("eval_a_loss", "eval_b_loss"):
        assert result.metrics[name] == pytest.approx(again[name], rel=1e-5)


def test_values_before_training_keep_their_name(make_run, held_out):
    metrics = make_run(eval=held_out, train={**BEST, **WORSE, "eval_on_start": True}).run().metrics
    assert metrics["eval_loss_before"] == pytest.approx(evaluated(make_run, tiny_model(), held_out)["eval_loss"])


@pytest.mark.parametrize("none", [{"max_steps": 0}, {"max_steps": -1, "num_train_epochs": 0}], ids=str)
def test_a_run_without_steps_evaluates_completely_and_saves_no_model(make_run, held_out, distance, tmp_path, none):
    sets = {"a": held_out, "b": held_out[:3]}
    evaluate = {"metrics": ["exact_match"], "max_new_tokens": 4}
    result = make_run(eval=sets, train=none, plugins=["samples:rows=2,max_new_tokens=4"], evaluate=evaluate).run()
    assert distance(result.model, tiny_model()) == 0
    expected = {f"eval_{name}_{measure}" for name in sets for measure in ("loss", "token_accuracy", "exact_match")}
    assert set(result.metrics) == expected
    assert result.status == "evaluated"
    assert {path.name for path in result.directory.iterdir()} == {
        *("config.yaml", "manifest.json", "log.jsonl", "rows.jsonl", "samples.jsonl")
    }
    manifest = manifest_of(result)
    assert (manifest["status"], manifest["metrics"]) == ("done", result.metrics)


def test_the_loss_of_a_run_without_steps_is_that_of_the_first_step(make_run, held_out):
    only = make_run("only", eval=held_out, train={"max_steps": 0}).run()
    trained = make_run("trained", eval=held_out, train={"eval_on_start": True}).run()
    assert only.metrics["eval_loss"] == trained.metrics["eval_loss_before"]


def test_a_stream_can_be_evaluated_only(tmp_path, held_out, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = Pipeline(
        model=tiny_model(),
        tokenizer=tiny_tokenizer(),
        data={"train": str(path), "streaming": True, "window": 8, "max_length": 64},
        eval=held_out,
        train={"max_steps": 0, "use_cpu": True, "output_dir": str(tmp_path / "run")},
    ).run()
    assert set(result.metrics) == {"eval_loss", "eval_token_accuracy"}


def test_resuming_a_finished_run_does_nothing_and_says_so(make_run, held_out, caplog):
    options = {"eval": held_out, "train": {**EACH_STEP, "max_steps": 2}}
    first = make_run(**options).run()
    before = {path: path.stat().st_mtime_ns for path in first.directory.rglob("*")}
    with caplog.at_level("INFO", "sftkit"):
        again = make_run(resume=True, **options).run()
    assert "is finished: there is nothing to resume" in caplog.text
    assert (again.status, again.metrics, again.model) == ("finished", first.metrics, None)
    assert {path: path.stat().st_mtime_ns for path in first.directory.rglob("*")} == before


def test_a_finished_run_continues_with_more_steps(make_run):
    make_run(train={"save_steps": 1, "max_steps": 1}).run()
    assert make_run(resume=True, train={"save_steps": 1, "max_steps": 2}).run().status == "trained"


def test_a_finished_run_without_checkpoints_cannot_continue_with_more_steps(make_run):
    make_run(train={"save_strategy": "no", "max_steps": 1}).run()
    assert make_run(resume=True, train={"save_strategy": "no", "max_steps": 1}).run().status == "finished"
    with pytest.raises(RunError, match="no checkpoint to resume from"):
        make_run(resume=True, train={"save_strategy": "no", "max_steps": 2}).run()


def test_the_callers_metrics_choose_the_best_model_and_are_reported(make_run, held_out):
    seen = []

    def compute(prediction):
        seen.append((prediction.predictions.shape[0], prediction.label_ids.shape[0]))
        return {"calls": float(len(seen))}

    train = {**BEST, "metric_for_best_model": "calls", "greater_is_better": False, "max_steps": 3}
    result = make_run(eval=held_out, train=train, compute_metrics=compute).run()
    assert seen == [(8, 8)] * 4  # and once before the first step, to see whether it computes the metric
    assert result.metrics["eval_calls"] == 2.0
    first = AutoModelForCausalLM.from_pretrained(result.directory / "checkpoint-1")
    assert all((one == two).all() for one, two in zip(first.parameters(), result.model.parameters(), strict=True))


def test_callbacks_stop_early_on_one_of_several_sets_and_samples_complete_the_first(make_run, held_out):
    ends = []

    class Ends(TrainerCallback):
        def on_train_end(self, args, state, control, **_):
            ends.append((state.global_step, state.best_global_step))

    sets = {"a": held_out, "b": [{"prompt": "### Other: ", "completion": f"Oslo {number}"} for number in range(3)]}
    result = make_run(
        eval=sets,
        train={**BEST, **WORSE, "max_steps": 8, "metric_for_best_model": "eval_b_loss"},
        callbacks=[EarlyStoppingCallback(1), Ends()],
        plugins=["samples:rows=3,max_new_tokens=4"],
    ).run()
    ((last, best),) = ends
    assert last == best + 1 < 8
    samples = [json.loads(line) for line in (result.directory / "samples.jsonl").read_text().splitlines()]
    assert {sample["prompt"] for sample in samples} == {"### Question: "}
    assert samples[0]["completions"][-1]["step"] == best
    again = evaluated(make_run, result.model, sets)
    for name in ("eval_a_loss", "eval_b_loss"):
        assert result.metrics[name] == pytest.approx(again[name], rel=1e-5)


def test_the_embedded_model_and_data_have_names_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    few = ["train.use_cpu=true", "train.save_strategy=no", "-o", "run"]

    def sftkit(*arguments):
        done = CliRunner().invoke(app, ["run", *arguments, *few], catch_exceptions=False)
        assert done.exit_code == 0
        return done.stdout

    assert "saved to run" in sftkit("-m", "demo", "-d", "demo", "train.max_steps=1")
    assert "finished already" in sftkit("-m", "demo", "-d", "demo", "train.max_steps=1", "--resume")
    (tmp_path / "sft.yaml").write_text("model: demo\ndata: {train: demo, eval: demo}\n")
    assert "no model is saved" in sftkit("sft.yaml", "train.max_steps=0", "--overwrite")
