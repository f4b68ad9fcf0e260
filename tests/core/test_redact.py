"""Secrets are recognised by their place and their shape, and nothing else is changed."""

from __future__ import annotations

import pytest

from sftkit.redact import hide, is_secret_name, without_secrets


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("https://ada:pass@host/a.jsonl", "https://***@host/a.jsonl"),
        ("s3://key:p@ss@bucket/a and b@c.de", "s3://***@bucket/a and b@c.de"),
        ("cannot read https://h/a?sig=abc&se=1: 403", "cannot read https://h/a?sig=***&se=***"),
        ("{'token': 'abc', 'eos_token': '</s>'}", "{'token': '***', 'eos_token': '</s>'}"),
        ('{"api_key": "a b", "n": 1}', '{"api_key": "***", "n": 1}'),
        ("Storage(client_secret='a b', size=1)", "Storage(client_secret='***', size=1)"),
        (
            "sftkit run model.options.token=abc train.max_steps=2",
            "sftkit run model.options.token=*** train.max_steps=2",
        ),
        ("-p mine:api_key=abc,size=1", "-p mine:api_key=***,size=1"),
        ("invalid token hf_abcdefghijklmnopqrstuv", "invalid token ***"),
        ("AKIAABCDEFGHIJKLMNOP is wrong", "*** is wrong"),
    ],
)
def test_secrets_in_texts_are_hidden(text, hidden):
    assert hide(text).startswith(hidden)


@pytest.mark.parametrize(
    "text",
    [
        "plugin x, option token: no such option -> set it, as in token=...",
        "s3://bucket/part-?.jsonl: no such file",
        "https://huggingface.co/docs: see there, or write to ada@example.org",
        "max_tokens=12 pad_token='<pad>' tokens_per_second=3",
    ],
)
def test_other_texts_are_not_changed(text):
    assert hide(text) == text


def test_values_of_secret_variables_are_hidden(monkeypatch, tmp_path):
    monkeypatch.setenv("MY_SERVICE_PASSWORD", "correct horse")
    monkeypatch.setenv("HF_TOKEN_PATH", "/some/where/else")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", str(tmp_path))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "falsefalse")
    text = f"correct horse, /some/where/else, {tmp_path}, falsefalse"
    assert hide(text) == f"***, /some/where/else, {tmp_path}, falsefalse"


def test_values_with_the_name_of_a_secret_are_hidden():
    given = {"token": "a", "nested": [{"password": "b", "eos_token": "c"}], "storage": {"key": "d", "secret": "e"}}
    hidden = {"token": "***", "nested": [{"password": "***", "eos_token": "c"}]}
    assert without_secrets(given) == {**hidden, "storage": {"key": "***", "secret": "***"}}
    assert without_secrets({"token": True}) == {"token": True}
    assert without_secrets({"key": "length"}) == {"key": "length"}
    assert is_secret_name("hub_token")
    assert not is_secret_name("max_new_tokens")
