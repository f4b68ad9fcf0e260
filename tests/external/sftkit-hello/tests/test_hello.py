"""Tests of the plugins and the command of sftkit-hello."""

import json

import pytest
import torch
import typer
from sftkit_hello import HelloCheck, HelloFormat, HelloNoise
from sftkit_hello.command import hello
from typer.testing import CliRunner

from sftkit.api import RunError

ROWS = [{"greeting": f"hello {name}", "reply": f"good day, {name}"} for name in ("Ada", "Kurt", "Emmy", "Alan")]


@pytest.mark.parametrize("plugin", [HelloNoise(), HelloCheck()])
def test_each_does_what_a_plugin_must(sftkit_check, plugin):
    sftkit_check(plugin)


def test_the_format_does_what_a_plugin_must(sftkit_check):
    sftkit_check(HelloFormat(), rows=ROWS)


def test_a_run_trains_with_all_of_them(sftkit_run):
    assert sftkit_run(HelloFormat(), HelloNoise(), HelloCheck(), rows=ROWS).status == "trained"


def test_the_reply_is_trained_and_the_greeting_is_not():
    formatter = HelloFormat().make_formatter({"greeting": "string", "reply": "string"})
    assert formatter({"greeting": ["hi"], "reply": ["bye"]}) == [[("hi\n", False, 1.0), ("bye", True, 1.0)]]


def test_the_noise_is_gone_afterwards(sftkit_model):
    embed, ids = sftkit_model.train().get_input_embeddings(), torch.arange(8)[None]
    before = embed(ids)
    with HelloNoise(scale=1).inject_noise(sftkit_model):
        assert not embed(ids).equal(before)
    assert embed(ids).equal(before)


def test_too_few_rows_stop_a_run(sftkit_run):
    with pytest.raises(RunError, match="there are only 4 rows"):
        sftkit_run(HelloFormat(), HelloCheck(least=5), rows=ROWS)


def test_the_command_counts_rows(tmp_path):
    file, app = tmp_path / "greetings.jsonl", typer.Typer()
    file.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    app.command()(hello)
    arguments = ["model.name=demo", "-d", str(file), "-p", "sftkit_hello:HelloFormat"]
    assert "hello, 4 rows" in CliRunner().invoke(app, arguments).stdout
