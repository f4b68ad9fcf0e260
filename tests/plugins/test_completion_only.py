"""Completion-only loss: templates are found by characters, or by token ids as the model gets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Features, Value

from sftkit.data.documents import Skipped
from sftkit.errors import DataError
from sftkit.pipeline import Pipeline
from sftkit.registry import Choice, select
from sftkit.testing import tiny_config, tiny_model, tiny_tokenizer
from sftkit_plugins.completion_only import CompletionOnly

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
DIALOGUE = "### User: Hello\n\n### Assistant: Hi, how can I help you?"


def trained(texts, tokenizer=None, config=None, **options):
    """The trained text of each document, or why it is skipped."""
    plugins, problems = select([Choice("completion_only", options)])
    assert not problems, problems
    formatter = plugins.hook.make_formatter(
        columns=Features({"text": Value("string")}),
        tokenizer=tokenizer or tiny_tokenizer(),
        config=config or tiny_config(),
    )
    return [
        document.reason if isinstance(document, Skipped) else "".join(span.text for span in document if span.trained)
        for document in formatter({"text": texts})
    ]


def llama2():
    if not SHARED.exists():
        pytest.skip("the shared data is not beside the project")
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(SHARED / "llama2_tokenizer")


def test_what_follows_the_last_response_template_is_trained():
    text = "### Question: a\n ### Answer: b ### Answer: c"
    assert trained([text], response_template=" ### Answer:") == [" c"]


def test_with_an_instruction_template_every_answer_is_trained():
    text = "### Human: a### Assistant: b### Human: c### Assistant: d"
    found = trained([text], response_template="### Assistant:", instruction_template="### Human:")
    assert found == [" b d"]


def test_rows_without_a_template_are_skipped_with_one_reason():
    found = trained(["no template", "### A: x", "none"], response_template="### A:")
    assert found == ["no response template '### A:' in the text", " x", "no response template '### A:' in the text"]


def test_the_llama_2_template_is_found_though_it_is_tokenized_differently_in_context():
    tokenizer = llama2()
    assert tokenizer.encode("### Assistant:", add_special_tokens=False) == [835, 4007, 22137, 29901]
    assert trained([DIALOGUE], tokenizer, response_template="### Assistant:") == [" Hi, how can I help you?"]


def test_token_ids_taken_in_context_work_as_the_seed_document_says():
    tokenizer = llama2()
    ids = tokenizer.encode("\n### Assistant:", add_special_tokens=False)[2:]
    assert ids == [2277, 29937, 4007, 22137, 29901]
    assert trained([DIALOGUE], tokenizer, response_template=ids) == [" Hi, how can I help you?"]
    alone = tokenizer.encode("### Assistant:", add_special_tokens=False)
    assert trained([DIALOGUE], tokenizer, response_template=alone)[0].startswith("no response template")


def test_real_rows_are_trained_on_their_output_only():
    if not SHARED.exists():
        pytest.skip("the shared data is not beside the project")
    rows = json.loads((SHARED / "code_alpaca_2k.json").read_text())[:100]
    texts = [f"### Question: {row['instruction']}\n ### Answer: {row['output']}" for row in rows]
    found = trained(texts, response_template=" ### Answer:")
    assert found == [f" {row['output']}" for row in rows]


def test_dropped_rows_are_counted_and_none_matching_shows_a_row(tmp_path):
    rows = [{"text": "### A: Paris"}, {"text": "no template here"}]
    options = {"model": tiny_model(), "tokenizer": tiny_tokenizer()}
    train = {"output_dir": str(tmp_path / "a"), "max_steps": 1, "use_cpu": True}
    result = Pipeline(data=rows, plugins=[CompletionOnly(response_template="### A:")], train=train, **options).run()
    counts = json.loads((result.directory / "manifest.json").read_text())["data"]["train"]
    assert counts["rows dropped: no response template '### A:' in the text"] == 1
    train = {**train, "output_dir": str(tmp_path / "b")}
    with pytest.raises(DataError, match=r"no response template '### B:'.*### A: Paris"):
        Pipeline(data=rows, plugins=[CompletionOnly(response_template="### B:")], train=train, **options).run()


def test_two_ways_to_choose_what_is_trained_are_refused():
    config = tiny_config(data={"loss": "all"})
    (problem,) = CompletionOnly(response_template="x").check_run(config)
    assert "both choose what is trained" in problem.what
