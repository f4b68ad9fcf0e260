"""`sftkit run`, `check` and `preview` say the same about rows that cannot be used."""

from __future__ import annotations

import json

import pytest
import yaml

from sftkit import Pipeline, SftkitError
from sftkit.testing import CHATML, tiny_model, tiny_tokenizer
from sftkit_commands.check.checks import run_checks
from sftkit_commands.preview import preview

GOOD = [{"prompt": f"{n}? ", "completion": f"it is {n}"} for n in range(12)]
NULL = {"prompt": "x", "completion": None}
CHATS = [
    {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"it is {n}"}]}
    for n in range(12)
]
STREAM = {"streaming": True, "window": 8}

CASES = {
    "no format": ([{"question": "a", "more": "b"}], {}),
    "a null": ([*GOOD, NULL], {}),
    "a null in a stream": ([*GOOD[:2], NULL, *GOOD], STREAM),
    "a null in a mixture": ([*GOOD, NULL], {"mix": True}),
    "a null in held-out rows": ([*GOOD[:3], NULL], {"eval": "train.jsonl", "train": "good.jsonl"}),
    "a null in one of several sets": ([NULL], {"eval": {"a": "good.jsonl", "b": "train.jsonl"}, "train": "good.jsonl"}),
    "more bad rows than allowed": ([*GOOD, NULL, NULL], {"on_bad_row": "skip", "max_bad_rows": 1}),
    "more bad rows than allowed in a stream": (
        [NULL, NULL, *GOOD],
        {"on_bad_row": "skip", "max_bad_rows": 1, **STREAM},
    ),
    "nothing but bad rows": ([NULL, NULL], {"on_bad_row": "skip"}),
    "a line that is no JSON": (["{"], {}),
    "no rows": ([], {}),
    "an unknown role": ([*CHATS, {"messages": [{"role": "robot", "content": "x"}]}], {}),
    "a row that is too long": ([*GOOD, {"prompt": "x", "completion": "long " * 100}], {"truncation": "error"}),
    "nothing trained": ([{"prompt": "x" * 100, "completion": "y"}], {}),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SFTKIT_CACHE", str(tmp_path / "cache"))
    tiny_model().save_pretrained("model")
    tiny_tokenizer(chat_template=CHATML).save_pretrained("model")
    return tmp_path


def write(path, rows):
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("case", CASES)
def test_run_check_and_preview_report_the_same_problems(here, case):
    rows, data = CASES[case]
    write(here / "train.jsonl", rows)
    write(here / "good.jsonl", GOOD)
    data = {"train": "train.jsonl", "max_length": 64, **data}
    if data.pop("mix", False):
        data["mix"] = {data.pop("train"): 1.0, "good.jsonl": 1.0}
    train = {"output_dir": "run", "use_cpu": True, "max_steps": 1}
    config = {"model": "model", "data": data, "train": train}
    (here / "sft.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with pytest.raises(SftkitError) as of_run:
        Pipeline(config=config).run()
    with pytest.raises(SftkitError) as of_preview:
        preview(["sft.yaml"])
    checked = [item for item in run_checks(Pipeline(config=config)).verdicts if item.status == "wrong"]
    assert [(item.what, item.where, item.fix) for item in checked] == [
        (problem.what, problem.where, problem.fix) for problem in of_run.value.problems
    ]
    assert of_preview.value.problems == of_run.value.problems
    assert {item.name for item in checked} == {"data"}
