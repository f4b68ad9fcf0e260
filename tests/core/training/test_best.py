"""The section `evaluate`: which model of a run is the best, and when the run stops early."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForCausalLM, EarlyStoppingCallback, TrainerCallback

from sftkit.config.evaluation import smaller_is_better
from sftkit.errors import RunError
from sftkit.run.pipeline import Pipeline
from sftkit.testing import tiny_config
from sftkit.training.arguments import argument_values

EVALUATE = {"every": 1, "best": "eval_score", "patience": 2}
RUN = {"max_steps": 8, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "save_total_limit": None}


class Scores(TrainerCallback):
    """Computes the metric `score`, which has a value for each step; may raise after a step, as if it was killed."""

    def __init__(self, *scores, dies_after=None):
        self.scores, self.dies_after, self.step = (0.0, *scores), dies_after, 0

    def on_train_begin(self, args, state, control, **_):
        self.step = state.global_step

    def on_step_end(self, args, state, control, **_):
        self.step = state.global_step

    def on_step_begin(self, args, state, control, **_):
        if self.dies_after == state.global_step:
            raise KeyboardInterrupt

    def compute(self, predictions):
        return {"score": self.scores[self.step], "perplexity": self.scores[self.step]}


@pytest.fixture
def scored(make_run, held_out):
    """Makes a run whose evaluations have the given scores."""

    def make(scores, *, evaluate=None, train=None, **options):
        config = {"evaluate": {**EVALUATE, **(evaluate or {})}}
        options = {"compute_metrics": scores.compute, "callbacks": [scores], "eval": held_out[:2], **options}
        return make_run(config=config, train={**RUN, **(train or {})}, **options)

    return make


@pytest.fixture
def notes(log_of):
    return lambda result: [entry["note"] for entry in log_of(result) if "note" in entry]


def manifest_of(result):
    return json.loads((result.directory / "manifest.json").read_text())


STOPS = (0.1, 0.5, 0.4, 0.3, 0.2, 0.9, 0.9, 0.9)


def test_a_run_without_a_better_value_stops_and_saves_its_best_model(scored, distance, notes):
    result = scored(Scores(*STOPS)).run()
    best = AutoModelForCausalLM.from_pretrained(result.directory / "checkpoint-2")
    assert distance(result.model, best) == 0
    assert notes(result) == [
        "step 1: best so far, eval score 0.1000",
        "step 2: best so far, eval score 0.5000 (was 0.1000)",
        "stopped at step 4: no better eval score for 2 evaluations; the model of step 2 is saved",
    ]
    assert (result.best.metric, result.best.value, result.best.step) == ("eval_score", 0.5, 2)
    assert result.stopped == "no better eval score for 2 evaluations"
    assert result.metrics["eval_score"] == 0.5
    recorded = manifest_of(result)
    assert recorded["best"] == {"metric": "eval_score", "value": 0.5, "step": 2}
    assert recorded["stopped"] == result.stopped


def test_evaluations_without_improvement_are_counted_across_a_resume(scored, notes):
    with pytest.raises(KeyboardInterrupt):
        scored(Scores(*STOPS, dies_after=3)).run()
    result = scored(Scores(*STOPS), resume=True).run()
    assert notes(result)[-1].startswith("stopped at step 4: ")


@pytest.mark.slow
def test_a_run_that_was_killed_after_it_had_stopped_trains_no_further_step(scored, log_of):
    result = scored(Scores(*STOPS)).run()
    path = result.directory / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "running"}))
    resumed = scored(Scores(*STOPS), resume=True).run()
    assert max(entry["step"] for entry in log_of(resumed)) == 4
    assert resumed.stopped == result.stopped


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_more_patience_only(scored):
    result = scored(Scores(*STOPS)).run()
    assert scored(Scores(*STOPS), resume=True).run().status == "finished"
    assert scored(Scores(*STOPS), resume=True).run().stopped == result.stopped
    more = scored(Scores(*STOPS), evaluate={"patience": 4}, resume=True).run()
    assert (more.stopped, more.best.step) == ("", 6)


@pytest.mark.slow
def test_another_metric_is_a_change_that_has_to_be_allowed(scored):
    scored(Scores(*STOPS), train={"max_steps": 2}).run()
    other = {"evaluate": {"best": "perplexity"}, "resume": True}
    with pytest.raises(RunError, match=r"evaluate.best: changed since the run began: 'eval_score' -> 'perplexity'"):
        scored(Scores(*STOPS), **other).run()
    allowed = scored(Scores(*STOPS), train={"max_steps": 3}, allow_changes=["evaluate.best"], **other).run()
    assert (allowed.best.metric, allowed.best.step) == ("eval_perplexity", 3)  # compared with nothing older


@pytest.mark.slow
def test_a_smaller_improvement_than_min_delta_counts_as_none(scored):
    result = scored(Scores(0.1, 0.11, 0.12, 0.13, *STOPS), evaluate={"min_delta": 0.05}).run()
    assert (result.best.step, manifest_of(result)["parts"][-1]["to_step"]) == (3, 3)


@pytest.mark.slow
def test_the_model_of_the_last_step_may_be_the_best(scored):
    result = scored(Scores(*range(8)), evaluate={"every": 2}, train={"max_steps": 3}).run()
    assert result.best.step == 3


@pytest.mark.slow
def test_with_several_sets_the_metric_of_one_decides(scored, held_out):
    sets = {"easy": held_out[2:4], "hard": held_out[:2]}
    evaluate = {"best": "eval_easy_loss", "patience": 1, "min_delta": 100.0}
    result = scored(Scores(*STOPS), evaluate=evaluate, eval=sets).run()
    assert (result.best.metric, manifest_of(result)["parts"][-1]["to_step"]) == ("eval_easy_loss", 2)


METRICS = {"eval_loss": True, "eval_chat_loss": True, "perplexity": True, "eval_bits_per_byte": True, "wer": True}
METRICS |= {"eval_loss_of_chat": True, "edit_distance": True, "word_error_rate": True}
METRICS |= {"eval_token_accuracy": False, "exact_match": False, "rougeL": False, "eval_error_recall": False}
METRICS |= {"eval_letter": None, "eval_length": None}


@pytest.mark.parametrize(("metric", "smaller"), METRICS.items())
def test_the_last_word_that_says_so_decides_whether_smaller_is_better(metric, smaller):
    assert smaller_is_better(metric) is smaller


@pytest.mark.parametrize("section", ["evaluate", "train"])
def test_transformers_is_given_what_is_better_where_it_assumes_otherwise(section):
    chosen = {"best": "perplexity"} if section == "evaluate" else {"metric_for_best_model": "perplexity"}
    assert argument_values(tiny_config(**{section: chosen}), has_eval=True)["greater_is_better"] is False
    assert "greater_is_better" not in argument_values(tiny_config(evaluate={"best": "loss"}), has_eval=True)


def test_the_section_becomes_fields_of_the_trainer():
    values = argument_values(tiny_config(evaluate={"every": 0.1, "best": "loss"}), has_eval=True)
    named = ("eval_strategy", "eval_steps", "save_strategy", "save_steps", "load_best_model_at_end")
    assert [values[name] for name in named] == ["steps", 0.1, "steps", 0.1, True]
    only_best = tiny_config(evaluate={"every": 5, "best": "loss"}, train={"save_strategy": "best"})
    assert argument_values(only_best, has_eval=True)["save_strategy"] == "best"


ONE = {"eval": "nowhere.jsonl"}
# name: section evaluate, section train, arguments of Pipeline, the key that is named, words of the problem
REFUSED = {
    "no data": ({"every": 5}, {}, {}, "evaluate.every", "no evaluation data -> set data.eval"),
    "never evaluated": (
        {"best": "loss"},
        {},
        ONE,
        "evaluate.best",
        "evaluations during training -> set evaluate.every",
    ),
    "no metric": ({"every": 5, "patience": 1}, {}, ONE, "evaluate.patience", "set evaluate.best"),
    "no patience": ({"every": 5, "min_delta": 0.1}, {}, ONE, "evaluate.min_delta", "does nothing without"),
    "no steps": ({"every": 5}, {"max_steps": 0}, ONE, "evaluate.every", "does nothing in a run without steps"),
    "unknown metric": ({"every": 5, "best": "eval_los"}, {}, ONE, "evaluate.best", "did you mean 'eval_loss'?"),
    "several sets": (
        {"every": 5, "best": "loss"},
        {},
        {"eval": {"a": "x", "b": "y"}},
        "evaluate.best",
        "set evaluate.best to one set's metric",
    ),
    "zero": ({"every": 0}, {}, ONE, "evaluate.every", "steps between evaluations"),
    "a word": ({"patience": "long"}, {}, ONE, "evaluate.patience", "evaluations without a better"),
    "other strategy": (
        {"every": 5},
        {"eval_strategy": "epoch"},
        ONE,
        "train.eval_strategy",
        "is epoch, but evaluate.every sets it to steps -> remove train.eval_strategy or evaluate.every",
    ),
    "other steps": ({"every": 5}, {"eval_steps": 6}, ONE, "train.eval_steps", "is 6, but evaluate.every sets it to 5"),
    "other saves": (
        {"every": 5, "best": "loss"},
        {"save_steps": 6},
        ONE,
        "train.save_steps",
        "is 6, but evaluate.best sets it to 5",
    ),
    "no saves": (
        {"every": 5, "best": "loss"},
        {"save_strategy": "no"},
        ONE,
        "train.save_strategy",
        "evaluate.best sets it to steps",
    ),
    "other metric": (
        {"every": 5, "best": "loss"},
        {"metric_for_best_model": "token_accuracy"},
        ONE,
        "train.metric_for_best_model",
        "evaluate.best",
    ),
    "stops twice": (
        {"every": 5, "best": "loss", "patience": 1},
        {},
        {**ONE, "callbacks": [EarlyStoppingCallback()]},
        "evaluate.patience",
        "also stops the run early",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_together_is_found_before_anything_is_read(name, tmp_path):
    evaluate, train, options, where, words = REFUSED[name]
    train = {"use_cpu": True, "max_steps": 20, "output_dir": str(tmp_path / "run"), **train}
    problems = Pipeline("demo", "nowhere.jsonl", train=train, config={"evaluate": evaluate}, **options).check()
    (found,) = [f"{problem.where}: {problem.what} -> {problem.fix}" for problem in problems]
    assert where in found
    assert words in found


def test_equal_values_in_both_sections_are_no_problem(tmp_path):
    train = {
        "use_cpu": True,
        "max_steps": 20,
        "eval_strategy": "steps",
        "eval_steps": 5,
        "metric_for_best_model": "loss",
    }
    train |= {"output_dir": str(tmp_path / "run")}
    config = {"evaluate": {"every": 5, "best": "eval_loss", "patience": 3}}
    assert Pipeline("demo", "nowhere.jsonl", train=train, config=config, **ONE).check() == ()
