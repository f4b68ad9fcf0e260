"""Completions that are JSON, and those that are the JSON of their reference, are counted."""

from __future__ import annotations

import json

import pytest

from sftkit import Pipeline
from sftkit.api import Completion
from sftkit.testing import tiny_model, tiny_tokenizer
from sftkit_plugins.json_metrics import JSONMetrics

REFERENCE = '{"a": 1, "b": [true, null]}'
TEXTS = {
    REFERENCE: (1, 1),
    '{"b":[true,null],\n "a": 1}': (1, 1),
    '{"a": 1, "b": [1, null]}': (1, 0),
    "{'a': 1}": (0, 0),
    f"```json\n{REFERENCE}\n```": (0, 0),
    "": (0, 0),
}


def shares(texts, reference=REFERENCE, **options):
    metric = JSONMetrics(**options).metrics()["json"]
    found = metric([Completion("?", reference, text, row) for row, text in enumerate(texts)])
    assert tuple(found) == metric.names
    return tuple(found.values())


@pytest.mark.parametrize("text", TEXTS)
def test_a_completion_is_valid_or_equal_as_json(text):
    assert shares([text]) == TEXTS[text]


def test_the_metrics_are_shares_of_all_completions():
    assert shares(TEXTS) == (3 / 6, 2 / 6)
    assert shares(["{}"], reference="no JSON") == (1, 0)


def test_code_fences_are_read_on_request():
    assert shares([f"Here:\n```json\n{REFERENCE}\n```\nDone", REFERENCE], fenced=True) == (1, 1)
    assert shares(["```"], fenced=True) == (0, 0)


def test_a_run_logs_them(tmp_path):
    rows = [{"prompt": "?", "completion": json.dumps({"a": number})} for number in range(4)]
    result = Pipeline(
        model=tiny_model(),
        tokenizer=tiny_tokenizer(),
        data=rows,
        eval=rows[:2],
        plugins=[JSONMetrics(), "no:checks"],
        evaluate={"metrics": ["json"], "max_new_tokens": 4},
        train={"max_steps": 1, "use_cpu": True, "output_dir": str(tmp_path / "run")},
    ).run()
    assert 0 <= result.metrics["eval_json_equal"] <= result.metrics["eval_json_valid"] <= 1
