"""Metrics of completions: logged at each evaluation, before the best checkpoint is chosen; training stays the same."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from sacrebleu.metrics import BLEU

from sftkit import Plugin, dataclass, hookimpl
from sftkit.api import Completion, HeldOut, complete
from sftkit.config.models import EvaluateSection
from sftkit.errors import ConfigError, DataError, RunError
from sftkit.run.changes import configuration_changes, unknown_names
from sftkit.run.manifest import new_manifest, new_part
from sftkit.testing import tiny_model, tiny_tokenizer
from sftkit.training.completion_metrics import CompletionMetrics, compute
from sftkit_plugins.metrics.texts import Bleu, ExactMatch, Rouge

LEARNS = {"learning_rate": 0.01, "lr_scheduler_type": "constant", "max_steps": 20, "eval_strategy": "steps"}
LEARNS |= {"eval_steps": 10, "save_steps": 10, "per_device_eval_batch_size": 3}
ALL = ["exact_match", "rouge", "bleu"]
PAIRS = [("the cat sat on the mat", "the cat sat on the mat"), ("the cat is here", "a dog is there"), ("", "a b")]
COMPLETIONS = [Completion("say", reference, text, row) for row, (text, reference) in enumerate(PAIRS)]


def entries(result, name):
    log = [json.loads(line) for line in (result.directory / "log.jsonl").read_text().splitlines()]
    return {entry["step"]: entry[name] for entry in log if name in entry}


def words(completions):
    """A metric of the user, with the order of the rows."""
    assert [each.row for each in completions] == list(range(len(completions)))
    return {"words": sum(len(each.text.split()) for each in completions), "rows": len(completions)}


def broken(completions):
    raise KeyError("no such thing")


@pytest.fixture(scope="module")
def shared():
    """Keeps the result of a run for several tests."""
    return {}


@pytest.fixture
def learned(shared, make_run, rows, monkeypatch):
    """A run that learns its rows, with every metric on two evaluation sets; its best model is loaded."""
    if not shared:
        train = {**LEARNS, "load_best_model_at_end": True, "metric_for_best_model": "b_rougeL"}
        evaluate = {"metrics": [*ALL, "json:words"], "rows": 3, "max_new_tokens": 40}
        sets = {"a": rows, "b": rows[:2]}
        monkeypatch.setattr(json, "words", words, raising=False)
        shared["run"] = make_run(eval=sets, plugins=["no:checks"], evaluate=evaluate, train=train).run()
        shared["held out"] = HeldOut.of(make_run("x", eval=sets).prepare().data.eval["a"], 3)
    return shared["run"]


def test_metrics_are_logged_at_each_evaluation_of_each_set(learned):
    for name in ("a", "b"):
        for metric in ("exact_match", "rouge1", "rouge2", "rougeL", "bleu", "words"):
            assert list(entries(learned, f"eval_{name}_{metric}")) == [0, 10, 20]
    assert learned.metrics["eval_a_rows"] == 3
    assert learned.metrics["eval_b_rows"] == 2
    assert learned.metrics["eval_a_rougeL_before"] < learned.metrics["eval_a_rougeL"]


def test_the_metrics_are_those_of_the_completions(learned, shared):
    tokenizer, prompts = learned.tokenizer, shared["held out"].prompts
    texts = complete(learned.model, tokenizer, [prompt.ids for prompt in prompts], 40)
    references = [tokenizer.decode(prompt.reference, skip_special_tokens=True).strip() for prompt in prompts]
    assert references[0] == "Paris is the capital of France."
    assert learned.metrics["eval_a_bleu"] == pytest.approx(BLEU().corpus_score(texts, [references]).score)
    exact = sum(text == reference for text, reference in zip(texts, references, strict=True)) / 3
    assert learned.metrics["eval_a_exact_match"] == exact


def test_the_best_checkpoint_by_a_metric_of_completions_is_saved(learned):
    values = entries(learned, "eval_b_rougeL")
    best = max((10, 20), key=lambda step: (values[step], -step))
    state = json.loads((learned.directory / "checkpoint-20" / "trainer_state.json").read_text())
    assert state["best_global_step"] == best
    assert state["best_metric"] == values[best]
    assert learned.metrics["eval_b_rougeL"] == values[best]


def test_training_is_bitwise_the_same_with_and_without_metrics(make_run, held_out):
    train = {**LEARNS, "max_steps": 3, "eval_steps": 1, "save_steps": 3, "eval_on_start": True}
    model, results = tiny_model(attention_dropout=0.3), []
    for name, evaluate in (("without", None), ("with", {"metrics": ALL, "max_new_tokens": 4})):
        results.append(make_run(name, model=model, eval=held_out, train=train, evaluate=evaluate).run().model)
    for one, other in zip(*(result.parameters() for result in results), strict=True):
        assert torch.equal(one, other)


def test_packed_documents_are_completed_one_by_one(make_run, held_out):
    def prompts(*plugins):
        return HeldOut.of(make_run(eval=held_out, plugins=plugins).prepare().data.eval["eval"], None).prompts

    def key(prompt):
        return prompt.ids, prompt.reference

    assert sorted(map(key, prompts("packing:eval=true"))) == sorted(map(key, prompts()))


def test_packing_that_cuts_documents_is_refused(make_run, held_out):
    run = make_run(eval=held_out, plugins=["packing:eval=wrapped", "no:checks"], evaluate={"metrics": ["exact_match"]})
    with pytest.raises(RunError, match=r"data\.eval: rows in which documents are cut are not completed"):
        run.run()


def test_rows_without_a_completion_are_an_error_before_the_weights_are_loaded(make_run):
    texts = [{"text": "Rome is the capital."}] * 4
    run = make_run(data=texts, eval=texts, plugins=["no:checks"], evaluate={"metrics": ["exact_match"]})
    with pytest.raises(RunError, match="none of the first 4 held-out rows has a prompt"):
        run.run()


def test_the_last_trained_part_is_the_reference_and_rows_without_one_are_counted():
    ids = list(range(10, 18))
    labels = [-100, 11, 12, -100, -100, 15, 16, -100]
    rows = [{"input_ids": ids, "labels": labels}, {"input_ids": [5, 6], "labels": [-100, 6]}]
    found = HeldOut.of([*rows, {"input_ids": [5, 6], "labels": [-100, -100]}])
    assert found.prompts == [([10, 11, 12, 13, 14], [15, 16], 0)]
    assert found.without == 2


def test_rows_with_images_are_refused():
    with pytest.raises(DataError, match="images"):
        HeldOut.of([{"input_ids": [1, 2], "labels": [-100, 2], "attached": b""}])


def test_references_that_are_too_long_are_reported(make_run, held_out, caplog):
    with caplog.at_level(logging.WARNING, "sftkit"):
        make_run(
            eval=held_out, train={"max_steps": 0}, evaluate={"metrics": ["exact_match"], "max_new_tokens": 9}
        ).run()
    (line,) = [record.message for record in caplog.records if "max_new_tokens" in record.message]
    assert line.startswith("eval: ")
    assert "of 8 references have more than evaluate.max_new_tokens=9 tokens" in line


@pytest.mark.parametrize(
    ("evaluate", "words"),
    [
        ({"metrics": ["rogue"]}, "evaluate.metrics: there is no metric 'rogue' -> did you mean 'rouge'?"),
        ({"metrics": ["bleu", "bleu"]}, "the metric bleu is listed twice"),
        ({"metrics": ["nowhere:score"]}, "`import nowhere` fails: ModuleNotFoundError"),
        ({"metrics": ["json:score"]}, "module json has no function 'score'"),
        ({"metrics": ["math:pi"]}, "math:pi is no function"),
        ({"rows": 7}, "evaluate.rows: does nothing without evaluate.metrics"),
        ({"metric": ["bleu"]}, "did you mean 'metrics'"),
    ],
    ids=str,
)
def test_wrong_metrics_are_problems_of_the_configuration(make_run, held_out, evaluate, words):
    (problem,) = make_run(eval=held_out, evaluate=evaluate).check()
    assert words in str(problem)


def test_metrics_without_held_out_rows_are_a_problem(make_run):
    (problem,) = make_run(evaluate={"metrics": ["bleu"]}).check()
    assert "evaluate.metrics: there are no held-out rows to complete -> set data.eval" in str(problem)


def test_the_best_metric_may_be_one_of_completions_and_is_checked(make_run, held_out):
    def check(name, *metrics):
        train = {**LEARNS, "metric_for_best_model": name, "load_best_model_at_end": True}
        return [str(item) for item in make_run(eval=held_out, train=train, evaluate={"metrics": [*metrics]}).check()]

    assert check("rougeL", "rouge") == []
    assert check("eval_exact_match", *ALL) == []
    (problem,) = check("rouge", "rouge")
    assert "nothing computes the metric eval_rouge -> did you mean 'eval_rougeL'?" in problem
    assert "nothing computes the metric eval_bleu" in check("bleu", "rouge")[0]
    assert check("anything", "json:dumps") == []  # a function may return any name


def test_a_package_that_is_missing_is_a_problem_with_its_command(make_run, held_out, monkeypatch):
    monkeypatch.setattr("sftkit_plugins.metrics.PACKAGES", {"bleu": "no-such-package>=2"})
    (problem,) = make_run(eval=held_out, evaluate={"metrics": ["exact_match", "bleu"]}).check()
    assert problem.what == "the metric bleu needs the package no-such-package, which is not installed"
    assert problem.fix == 'pip install "no-such-package>=2"'


def test_a_metric_that_fails_ends_the_run_before_its_first_step(make_run, held_out, monkeypatch):
    monkeypatch.setattr(json, "score", broken, raising=False)
    run = make_run(eval=held_out, evaluate={"metrics": ["json:score"], "max_new_tokens": 2})
    with pytest.raises(RunError, match="the metric json:score fails: KeyError: 'no such thing'"):
        run.run()


@pytest.mark.parametrize("returned", ["much", {"a": None}, {1: 2.0}, float("nan"), None], ids=str)
def test_a_metric_returns_numbers(returned):
    with pytest.raises(RunError, match="the metric mine returns"):
        compute({"mine": lambda completions: returned}, COMPLETIONS)


def test_two_metrics_of_one_name_are_an_error():
    with pytest.raises(RunError, match="the metric m:two returns one, which is computed already"):
        compute({"m:one": lambda _: 1, "m:two": lambda _: {"one": 2}}, COMPLETIONS)


def test_rouge_is_the_mean_of_its_library(caplog):
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    expected = [scorer.score(reference, text) for text, reference in PAIRS]
    for name, value in Rouge(stemmer=False)(COMPLETIONS).items():
        assert value == pytest.approx(sum(score[name].fmeasure for score in expected) / 3)
    assert ExactMatch()(COMPLETIONS) == pytest.approx(1 / 3)
    assert not caplog.text


def test_rouge_refuses_and_reports_texts_that_it_cannot_read(caplog):
    foreign = Completion("?", "東京は日本の首都です", "東京は日本の首都です", 0)
    with pytest.raises(DataError, match="no reference has a word that rouge counts"):
        Rouge(stemmer=False)([foreign])
    Rouge(stemmer=False)([foreign, *COMPLETIONS])
    assert "1 of 4 references have no word" in caplog.text
    assert Bleu("zh")([foreign]) == pytest.approx(100)


class Process:
    """What a trainer is to `CompletionMetrics`, in one of two processes."""

    def __init__(self, rank, sharded=False):
        self.args = type("Args", (), {"world_size": 2, "process_index": rank, "per_device_eval_batch_size": 2})
        self.sharded = sharded
        self.model, self.processing_class, self.stopping = tiny_model(), tiny_tokenizer(), None

    def autocast_smart_context_manager(self):
        return torch.no_grad()


@pytest.mark.parametrize("sharded", [False, True])
def test_processes_divide_the_rows_unless_the_weights_are_sharded(monkeypatch, sharded):
    rows = [{"input_ids": [0, 40 + number, 50], "labels": [-100, -100, 50]} for number in range(5)]
    shares = []

    def gather(made):
        shares.append(made)
        return [each for share in shares for each in share]

    monkeypatch.setattr("accelerate.utils.gather_object", gather)
    monkeypatch.setattr("accelerate.utils.broadcast_object_list", lambda outcome: [outcome[0] or {}, outcome[1]])
    settings = EvaluateSection(metrics=["exact_match"], max_new_tokens=3)
    for rank in (1, 0):
        metrics = CompletionMetrics({"m:rows": len}, settings)
        found = metrics.measure(Process(rank, sharded), rows, "eval")
    assert found == {"eval_rows": 5.0}
    assert [len(share) for share in shares] == ([] if sharded else [2, 3])
    assert [each.row for each in metrics.completions["eval"]] == [0, 1, 2, 3, 4]


def test_the_schema_of_the_section_is_that_of_the_model():
    from sftkit.plugin.schema import config_schema

    keys = config_schema()["properties"]["evaluate"]["anyOf"][0]["properties"]
    assert set(keys) == set(EvaluateSection.model_fields)


@pytest.mark.parametrize(("metric", "names"), [("exact_match", ["evaluate.rows"]), ("loss", [])])
def test_a_resumed_run_completes_as_before_if_that_chooses_the_best(make_run, held_out, metric, names):
    def manifest(**evaluate):
        train = {**LEARNS, "metric_for_best_model": metric, "load_best_model_at_end": True}
        stages = make_run(eval=held_out, train=train, evaluate={"metrics": ["exact_match"], **evaluate}).stages()
        made = new_manifest(stages.config, stages.plugins, stages.engine)
        return {**made, "parts": [new_part(made, 0, {}, launch="")]}

    assert [change.name for change in configuration_changes(manifest(), manifest(rows=7))] == names
    assert not list(unknown_names(["evaluate", "evaluate.rows"], []))


@dataclass(frozen=True, kw_only=True)
class Other(Plugin):
    """Has a metric that sftkit has."""

    @hookimpl
    def metrics(self):
        return {"bleu": words}


def test_two_plugins_with_one_metric_are_an_error(make_run, held_out):
    with pytest.raises(ConfigError, match="both have a metric bleu"):
        make_run(eval=held_out, plugins=[Other()]).prepare()
