"""`sftkit evaluate` finds what the run logged, on the run's held-out rows or on others, and says what it left out."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from sftkit import Pipeline
from sftkit.api import ConfigError, DataError, Evaluator, load_trained
from sftkit.cli import app
from sftkit.errors import SftkitError
from sftkit.testing import tiny_conversations, tiny_model, tiny_tokenizer

TRAIN = {"max_steps": 2, "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "learning_rate": 0.05}
TASK = """\
task: numbers
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A directory with a base model, and data in files."""
    path = tmp_path_factory.mktemp("evaluation")
    tiny_model().save_pretrained(path / "base")
    tiny_tokenizer().save_pretrained(path / "base")
    write(path / "train.jsonl", tiny_conversations(24))
    write(
        path / "other.jsonl", [*tiny_conversations(4, first=50), {"messages": tiny_conversations(1)[0]["messages"] * 9}]
    )
    return path


@pytest.fixture(scope="module")
def run(folder):
    """A run that trained an adapter with new tokens on packed rows, and held out a fraction of its data."""
    data = {"train": str(folder / "train.jsonl"), "eval": 0.25, "max_length": 96, "cache": False}
    plugins = ["chatml", "peft:r=2", "packing:eval=true", "no:checks"]
    metrics = {"metrics": ["exact_match", "bleu"], "rows": 3, "max_new_tokens": 8}
    evaluate = {"every": 1, "best": "eval_loss", "patience": 2, **metrics}
    train = {**TRAIN, "output_dir": str(folder / "run"), "use_cpu": True}
    return Pipeline(str(folder / "base"), data, plugins=plugins, train=train, evaluate=evaluate).run()


def evaluate(*arguments):
    """What the command prints; errors are raised."""
    done = CliRunner().invoke(app, ["evaluate", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0
    return done.stdout


@pytest.fixture(scope="module")
def found(run, folder):
    """What the command prints as JSON, with the base besides, and the completions that it writes."""
    printed = evaluate(run.directory, "--base", "--json", "--output", folder / "made" / "completions.jsonl")
    lines = (folder / "made" / "completions.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(printed), [json.loads(line) for line in lines]


def test_the_values_are_those_that_the_run_logged(run, found):
    metrics = found[0]["metrics"]
    for name in ("eval_loss", "eval_token_accuracy", "eval_exact_match", "eval_bleu"):
        assert metrics[name] == pytest.approx(run.metrics[name], rel=1e-6), name
    assert metrics["eval_perplexity"] == pytest.approx(torch.tensor(run.metrics["eval_loss"]).exp().item())


def test_the_base_is_evaluated_on_the_same_rows(run, found):
    assert found[0]["base_metrics"].keys() == found[0]["metrics"].keys()
    assert found[0]["base_metrics"]["eval_loss"] == pytest.approx(run.metrics["eval_loss_before"], rel=0.02)


def test_completions_are_written_with_their_rows(run, found):
    report, lines = found
    assert report["completed"] == {"eval": 3}
    assert [(line["set"], line["row"]) for line in lines] == [("eval", 0), ("eval", 1), ("eval", 2)]
    for line in lines:
        assert line["prompt"].startswith("user\nWhat is ")
        assert line["reference"].startswith("It is ")
        assert {"text", "base_text", "exact"} < line.keys()


def test_a_checkpoint_is_evaluated_as_the_run_did_then(run):
    log = [json.loads(line) for line in (run.directory / "log.jsonl").read_text().splitlines()]
    (then,) = [entry["eval_loss"] for entry in log if entry["step"] == 1 and "eval_loss" in entry]
    report = json.loads(evaluate(run.directory / "checkpoint-1", "--metrics", "none", "--json"))
    assert report["metrics"]["eval_loss"] == pytest.approx(then, rel=1e-6)
    assert report["completed"] == {}


def test_other_data_is_prepared_as_the_run_did_and_what_is_cut_is_counted(run, folder):
    shown = evaluate(run.directory, "--data", folder / "other.jsonl", "-p", "no:packing", "--rows", "2")
    assert "1 rows truncated" in shown
    assert "eval: 2 rows completed" in shown
    assert "eval bleu" in shown


def test_any_model_is_evaluated_with_data_and_overrides(folder):
    report = json.loads(
        evaluate(
            *(folder / "base", "data.special_tokens=none", "--data", folder / "train.jsonl", "-p", "chatml"),
            *("--max-new-tokens", 2, "--rows", 2, "--batch-size", 2, "--device", "cpu", "--json"),
        )
    )
    assert report["data"]["eval"]["rows"] == 24
    assert report["completed"] == {"eval": 2}
    assert "eval_exact_match" in report["metrics"]


def test_texts_without_prompts_have_a_loss_and_the_reason_why_nothing_is_completed(folder):
    texts = write(folder / "texts.jsonl", [{"text": "Paris is the capital of France."}] * 2)
    shown = evaluate(folder / "base", "--data", texts)
    assert "nothing is completed: none of the first 2 held-out rows has a prompt" in " ".join(shown.split())
    with pytest.raises(DataError, match="none of the first 2 held-out rows has a prompt"):
        evaluate(folder / "base", "--data", texts, "--metrics", "rouge")


def test_each_set_has_its_metrics(run, folder):
    trained, files = load_trained(run.directory), {name: str(folder / "other.jsonl") for name in "ab"}
    evaluator = Evaluator.of(trained, files, settings={"metrics": ["exact_match"], "rows": 2, "max_new_tokens": 2})
    result = evaluator.evaluate(trained)
    assert {"eval_a_loss", "eval_b_perplexity", "eval_b_exact_match"} < result.metrics.keys()
    assert [len(result.completions[name]) for name in "ab"] == [2, 2]


def test_a_loss_that_is_no_likelihood_has_no_perplexity(run):
    trained = load_trained(run.directory)
    evaluator = Evaluator.of(trained, settings={"metrics": []}, plugins=["loss:label_smoothing=0.1"])
    assert set(evaluator.evaluate(trained).metrics) == {"eval_loss", "eval_token_accuracy"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("BASE",), "no run trained this model, so it has no held-out data -> name a file with --data"),
        (("BASE", "--data", "x", "--base"), "no run trained this model, so its base is unknown"),
        (("RUN", "--metrics", "rogue"), "command line, evaluate.metrics: there is no metric 'rogue'"),
        (("RUN", "--limit", "3"), "--limit: does nothing without --tasks -> add --tasks"),
        (("RUN", "--tasks", "a", "--rows", "3"), "--rows: is about held-out rows"),
        (("RUN", "--metrics", "none", "--output", "x"), "nothing was completed, so there is nothing to write"),
        (("RUN", "--tasks", "a", "--include-path", "nowhere"), "there is no such directory"),
    ],
    ids=str,
)
def test_wrong_arguments_are_errors_with_a_fix(run, folder, arguments, words):
    places = {"RUN": run.directory, "BASE": folder / "base"}
    with pytest.raises(SftkitError) as raised:
        evaluate(*(places.get(each, each) for each in arguments))
    assert words in str(raised.value)


def test_a_run_on_loaded_data_needs_a_file(tmp_path):
    options = {"tokenizer": tiny_tokenizer(), "train": {"max_steps": 1, "output_dir": str(tmp_path), "use_cpu": True}}
    Pipeline(tiny_model(), [{"text": "Rome"}] * 4, plugins=["no:checks"], **options).run()
    with pytest.raises(ConfigError, match="the run has no held-out data -> name a file with --data"):
        Evaluator.of(load_trained(tmp_path))


def test_lm_eval_is_required_for_tasks(run, monkeypatch):
    monkeypatch.setattr("sftkit_commands.evaluate.tasks.REQUIREMENT", "no-such-package>=1")
    with pytest.raises(ConfigError, match=r'--tasks: needs the package no-such-package.* pip install "no-such-package'):
        evaluate(run.directory, "--tasks", "numbers")


@pytest.mark.slow
def test_a_local_task_of_lm_eval_agrees_with_the_probabilities_of_the_model(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [
        {"question": f"What is {n} plus one?", "choices": [" cat", f" It is {n + 1}."], "answer": 0} for n in range(4)
    ]
    (tmp_path / "numbers.yaml").write_text(TASK.replace("DATA", write(tmp_path / "rows.jsonl", rows)))
    report = json.loads(evaluate(run.directory, "--tasks", "numbers", "--include-path", tmp_path, "--base", "--json"))

    trained = load_trained(run.directory)

    def likelihood(question, choice):
        before = trained.tokenizer(question)["input_ids"]
        ids = torch.tensor([trained.tokenizer(question + choice)["input_ids"]])
        with torch.no_grad():
            scores = trained.model(input_ids=ids).logits[0].log_softmax(-1)
        return sum(scores[at - 1, ids[0, at]].item() for at in range(len(before), ids.shape[1]))

    right = [
        likelihood(row["question"], row["choices"][0]) > likelihood(row["question"], row["choices"][1]) for row in rows
    ]
    assert report["metrics"]["numbers_acc"] == sum(right) / len(right)
    assert "numbers_acc_stderr" in report["base_metrics"]
    with pytest.raises(ConfigError, match="there is no task 'nmbers' -> did you mean 'numbers'"):
        evaluate(run.directory, "--tasks", "nmbers", "--include-path", tmp_path)
    with pytest.raises(ConfigError, match=r"lm-eval fails: .* -> the data of most tasks is on the hub"):
        evaluate(run.directory, "--tasks", "arc_easy", "--limit", "1")
