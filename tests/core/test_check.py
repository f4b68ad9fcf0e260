"""`sftkit check` finds what would make a run wrong, `sftkit run` stops there, and clean runs pass."""

from __future__ import annotations

import json
import re
from collections import namedtuple

import pytest
from typer.testing import CliRunner

from sftkit import Pipeline, SftkitError
from sftkit.cli import app
from sftkit.testing import tiny_model, tiny_tokenizer
from sftkit_commands.check.checks import run_checks

GOOD = [{"prompt": f"question {n}? ", "completion": f"answer {n}"} for n in range(20)]
CHAT = [
    {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"it is {n}"}]}
    for n in range(20)
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A directory with a tiny model of 256 positions and its tokenizer."""
    path = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def lines(rows):
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n"


def pipeline(tmp_path, model, rows=GOOD, *, data=None, train=None, plugins=(), tokenizer=None, eval=None):
    path = tmp_path / "train.jsonl"
    path.write_text(lines(rows), encoding="utf-8")
    options = {"train": str(path), "max_length": 64, "cache": False, **(data or {})}
    if eval is not None:
        held_out = tmp_path / "eval.jsonl"
        held_out.write_text(lines(eval), encoding="utf-8")
        options["eval"] = str(held_out)
    train = {"output_dir": str(tmp_path / "run"), "num_train_epochs": 1, **(train or {})}
    config = {"model": {"name": str(model)}, "data": options, "train": train}
    return Pipeline(config=config, plugins=plugins, tokenizer=tokenizer)


def report(tmp_path, model, rows=GOOD, **options):
    return run_checks(pipeline(tmp_path, model, rows, **options))


def found(checked, name, status="wrong"):
    """What the verdicts of this name and status say; each has a fix."""
    verdicts = [verdict for verdict in checked.verdicts if verdict.name == name and verdict.status == status]
    assert all(verdict.fix for verdict in verdicts)
    return " ".join(f"{verdict.where} {verdict.what}" for verdict in verdicts)


def without(token):
    tokenizer = tiny_tokenizer()
    setattr(tokenizer, token, None)
    return tokenizer


def with_template(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


NO_END = "{% for m in messages %}{{ m.role }}: {% generation %}{{ m.content }}{% endgeneration %}\n{% endfor %}"
LONG = [{"prompt": "question? ", "completion": "long " * 40}] * 20

FAULTS = {
    "misspelt key": ({"data": {"max_lenght": 3}}, "configuration", "no such key"),
    "misspelt training argument": ({"train": {"learning_rat": 1e-4}}, "configuration", "learning_rat"),
    "unknown plugin": ({"plugins": ["packin"]}, "configuration", "packin"),
    "no plugin for a slot": ({"plugins": ["no:formats"]}, "configuration", "make_formatter"),
    "no such file": ({"data": {"train": "./no.jsonl"}}, "data", "no such file"),
    "empty file": ({"rows": [""]}, "data", ""),
    "a line that is no JSON": ({"rows": [*GOOD, "{broken"]}, "data", "not valid JSON"),
    "unknown columns": ({"rows": [{"question": "a", "reply": "b"}]}, "data", "no format fits"),
    "null content": ({"rows": [*GOOD, {"prompt": "x", "completion": None}]}, "data", "is null"),
    "unknown role": (
        {"rows": [*CHAT, {"messages": [{"role": "robot", "content": "x"}]}], "tokenizer": with_template(NO_END)},
        "data",
        "unknown role",
    ),
    "no chat template": ({"rows": CHAT, "tokenizer": without("chat_template")}, "data", "no chat template"),
    "every label masked": (
        {"rows": [{"prompt": "x", "completion": ""}] * 3, "tokenizer": without("eos_token")},
        "data",
        "every label is masked",
    ),
    "a template that is in no row": (
        {"rows": [{"text": "a b c"}], "plugins": ["completion_only:response_template=### Answer:"]},
        "data",
        "no response template",
    ),
    "a template without EOS": ({"rows": CHAT, "tokenizer": with_template(NO_END)}, "EOS", "0.0%"),
    "no EOS token": ({"tokenizer": without("eos_token")}, "EOS", "no EOS token"),
    "BOS twice": (
        {"rows": CHAT, "tokenizer": with_template("{{ bos_token }}{{ bos_token }}" + NO_END + "{{ eos_token }}")},
        "BOS",
        "20 rows begin with two BOS tokens",
    ),
    "completions cut": ({"rows": LONG, "data": {"max_length": 24}}, "length", "20 completions were cut"),
    "more tokens than positions": (
        {"rows": [{"prompt": "x ", "completion": "long " * 200}], "data": {"max_length": 1024}},
        "positions",
        "256 positions",
    ),
    "held-out rows that are trained on": ({"eval": GOOD[:5]}, "held out", "5 of 5"),
    "nothing to do": ({"train": {"num_train_epochs": 0}}, "configuration", "nothing to train and nothing to evaluate"),
    "batches larger than the data": (
        {"train": {"per_device_train_batch_size": 64, "dataloader_drop_last": True}},
        "steps",
        "has no steps",
    ),
    "no learning rate": ({"train": {"learning_rate": 0.0}}, "configuration", "0.0 is out of range"),
    "a stream without max_steps": ({"data": {"streaming": True}}, "configuration", "max_steps"),
}
OTHER = [{"prompt": f"Other {number}? ", "completion": f"Yes {number}."} for number in range(5)]
DOUBTS = {
    "evaluations after the end": (
        {"train": {"eval_strategy": "steps", "eval_delay": 100}, "eval": OTHER},
        "evaluation",
        "ends before the first evaluation",
    ),
    "a single evaluation": (
        {"train": {"eval_strategy": "steps", "eval_steps": 100}, "eval": OTHER},
        "evaluation",
        "only after its last step",
    ),
    "warm-up longer than the run": ({"train": {"warmup_steps": 100}}, "warm-up", "never reached"),
    "duplicates": ({"rows": [*GOOD, *GOOD]}, "duplicates", "20 of 40"),
    "some completions cut": ({"rows": [*GOOD, *LONG[:4]]}, "length", "4 completions were cut"),
    "many rows dropped": ({"rows": [*GOOD, *[{"prompt": "", "completion": ""}] * 9]}, "rows", "empty text"),
    "bad rows skipped": (
        {"rows": [*GOOD, *[{"prompt": "x", "completion": None}] * 9], "data": {"on_bad_row": "skip"}},
        "rows",
        "bad rows skipped",
    ),
    "packs with holes": ({"rows": LONG, "plugins": ["packing"], "data": {"max_length": 300}}, "packing", "% full"),
    "a rate for another optimizer": ({"train": {"learning_rate": 0.5}}, "learning rate", "is 0.5"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(tmp_path, model, fault):
    options, name, text = FAULTS[fault]
    checked = report(tmp_path, model, **options)
    assert checked.wrong
    assert text in found(checked, name), [str(verdict) for verdict in checked.verdicts]
    assert any(verdict.name == name and verdict.status == "wrong" for verdict in checked.verdicts)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_stops_at_the_same_faults_before_it_writes(tmp_path, model, fault):
    options, _, text = FAULTS[fault]
    with pytest.raises(SftkitError, match=re.escape(text)):
        pipeline(tmp_path, model, **options).run()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("doubt", DOUBTS)
def test_what_may_not_be_intended_is_a_warning(tmp_path, model, doubt):
    options, name, text = DOUBTS[doubt]
    checked = report(tmp_path, model, **options)
    assert text in found(checked, name, "warn"), [str(verdict) for verdict in checked.verdicts]
    assert not checked.wrong


def test_a_run_that_is_there_is_found(tmp_path, model):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious.txt").write_text("x")
    assert "not empty" in found(report(tmp_path, model), "configuration")


def test_a_disk_that_is_too_small_is_found(tmp_path, model, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**6, 10**6, 1000))
    assert "1.00 kB are free" in found(report(tmp_path, model), "disk")


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"max_steps": 4}, "1 at a time"),
        ({"max_steps": 4, "save_steps": 1}, "3 at a time"),
        ({"max_steps": 4, "save_steps": 0.25, "save_total_limit": None}, "4 at a time"),
        ({"num_train_epochs": 2, "save_strategy": "epoch"}, "2 at a time"),
    ],
)
def test_the_disk_holds_no_more_checkpoints_than_the_run_keeps(tmp_path, model, train, said):
    (disk,) = (verdict for verdict in report(tmp_path, model, train=train).verdicts if verdict.name == "disk")
    assert said in disk.what


def test_clean_data_raises_no_alarm(tmp_path, model):
    checked = report(tmp_path, model, eval=[{"prompt": "another? ", "completion": "yes"}])
    assert [str(verdict) for verdict in checked.verdicts if verdict.status != "ok"] == []


def test_a_run_without_steps_is_clean_if_it_evaluates(tmp_path, model):
    checked = report(tmp_path, model, train={"max_steps": 0}, eval=[{"prompt": "another? ", "completion": "yes"}])
    assert not checked.wrong
    assert "only evaluates" in next(verdict.what for verdict in checked.verdicts if verdict.name == "steps")


def test_the_plan_is_what_the_run_then_does(tmp_path, model):
    train = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "use_cpu": True}
    plan = report(tmp_path, model, train=train).details("steps")
    config = {"model": {"name": str(model)}, "data": {"train": str(tmp_path / "train.jsonl"), "max_length": 64}}
    config["train"] = {**train, "num_train_epochs": 1, "output_dir": str(tmp_path / "run"), "logging_steps": 1}
    Pipeline(config=config).run()
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert plan["rows_per_step"] == 6
    assert max(entry["step"] for entry in log) == plan["steps"]


def test_the_command_accepts_the_embedded_run_and_exits_with_2_when_wrong(cli, tmp_path, monkeypatch):
    checked = json.loads(cli("check", "-p", "packing", "--json", cwd=tmp_path).stdout)
    assert not checked["wrong"]
    assert {verdict["status"] for verdict in checked["verdicts"]} == {"ok"}
    assert checked["data"]["train"]["rows"] > 0
    monkeypatch.chdir(tmp_path)
    small = ("check", "data.eval=null", "evaluate=null", "train.eval_on_start=false", "-p", "no:samples")
    right = CliRunner().invoke(app, small)
    assert right.exit_code == 0
    assert "nothing is wrong" in right.output
    wrong = CliRunner().invoke(app, [*small, "--json", "data.max_length=8"])
    assert wrong.exit_code == 2
    assert json.loads(wrong.stdout)["wrong"]


@pytest.mark.parametrize("name", ["code_alpaca_2k.json", "alpaca_en_demo.json"])
def test_real_data_raises_no_alarm(tmp_path, model, real_data, name):
    from transformers import AutoTokenizer

    train = {"output_dir": str(tmp_path / "run")}
    data = {"train": str(real_data / name), "max_length": 1024, "cache": False}
    tokenizer = AutoTokenizer.from_pretrained(real_data / "llama2_tokenizer")
    checked = run_checks(Pipeline(model=tiny_model(), tokenizer=tokenizer, data=data, train=train))
    assert [str(verdict) for verdict in checked.verdicts if verdict.status != "ok"] == []


def test_weighted_tokens_are_reported_and_ok(tmp_path, model):
    rows = [{**row, "weight": 0.5 if number < 5 else 1} for number, row in enumerate(GOOD)]
    checked = report(tmp_path, model, rows)
    (verdict,) = [verdict for verdict in checked.verdicts if verdict.name == "weights"]
    stats = checked.data["train"]
    weighted = stats["trained tokens with a weight other than 1"]
    trained = stats["trained tokens"]
    assert verdict.what == f"train: {weighted:,} of {trained:,} trained tokens have a weight other than 1"
    assert 0 < weighted < stats["trained tokens"]
    assert verdict.status == "ok"
    assert not [verdict for verdict in report(tmp_path, model).verdicts if verdict.name == "weights"]
