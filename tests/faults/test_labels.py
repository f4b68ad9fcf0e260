"""Rows 11 to 15 of the table of faults: what is trained of each row, and what can not be."""

from __future__ import annotations

import json
from itertools import islice

import pytest

from sftkit import Pipeline, SftkitError
from sftkit.testing import CHATML, tiny_model, tiny_tokenizer

GOOD = [{"prompt": f"q{n}? ", "completion": f"answer {n}"} for n in range(8)]
CUT_PROMPT = [{"prompt": f"{n} long " * 30, "completion": "x"} for n in range(4)]
CUT_ANSWER = [{"prompt": f"q{n}? ", "completion": f"word {n} " * 30} for n in range(4)]
CHAT = [
    {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"it is {n}"}]}
    for n in range(8)
]
PACKED = pytest.mark.parametrize("plugins", [(), ("packing",)], ids=["single", "packed"])
STREAMED = pytest.mark.parametrize("data", [{}, {"streaming": True, "window": 24}], ids=["prepared", "streamed"])


@pytest.fixture
def prepare(tmp_path):
    """Prepares rows as a run would; called with the rows, plugins, the tokenizer and the section ``data``."""

    def make(rows, plugins=(), tokenizer=None, **data):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        prepared = Pipeline(
            model=tiny_model(),
            tokenizer=tokenizer or tiny_tokenizer(chat_template=CHATML),
            data={"train": str(path), "cache": False, "max_length": 64, **data},
            plugins=plugins,
            train={"output_dir": str(tmp_path / "run"), "max_steps": 2},
        ).prepare()
        return prepared, dict(prepared.data.counts.by_split["train"])

    return make


MASKED = {
    "prompts that fill the row": (CUT_PROMPT, "no trained token is left within data.max_length=64"),
    "labels of -100": ([{"input_ids": [5, 6, 7], "labels": [-100] * 3}] * 4, "every label is masked"),
    "weights of 0": ([{**row, "weight": 0} for row in GOOD], "every label is masked"),
    "messages with train: false": (
        [{"messages": [message | {"train": False} for message in row["messages"]]} for row in CHAT],
        "no assistant turn",
    ),
}


@PACKED
@STREAMED
@pytest.mark.parametrize("case", MASKED)
def test_11_data_without_a_trained_token_is_an_error(prepare, plugins, data, case):
    rows, message = MASKED[case]
    with pytest.raises(SftkitError, match=message):
        list(islice(prepare(rows, plugins, **data)[0].data.train, 1))


def test_11_the_command_ends_before_it_reads_weights(start, configure, tmp_path):
    """The model's file of weights is damaged, and nothing reads it."""
    config = configure(rows=CUT_PROMPT, plugins={"packing": {}})
    tiny_tokenizer().save_pretrained(tmp_path / "weightless")
    tiny_model().config.save_pretrained(tmp_path / "weightless")
    (tmp_path / "weightless" / "model.safetensors").write_bytes(b"damaged")
    command = start("run", config, "-o", "run", "-m", "weightless", "data.max_length=64")
    assert command.wait() == 2
    assert "error: data.train: no trained token is left within data.max_length=64 -> " in command.output
    assert "increase data.max_length, or shorten the prompts" in command.output
    assert not (tmp_path / "run").exists()


@PACKED
@STREAMED
def test_12_fully_masked_rows_are_dropped_and_counted(prepare, plugins, data):
    prepared, _ = prepare([*CUT_PROMPT, *GOOD], plugins, **data)
    texts = [tiny_tokenizer().decode(row["input_ids"]) for row in islice(prepared.data.train, 8)]
    counts = (prepared.data.train if data else prepared.data).counts.by_split["train"]
    assert counts["rows without a trained token dropped"] >= 4
    if not data:
        assert counts["rows without a trained token dropped"] == 4
        assert sum(text.count("answer") for text in texts) == 8
    assert not any("long" in text for text in texts)


def test_12_a_later_window_of_a_stream_may_be_masked_altogether(prepare):
    rows = [*GOOD, *CUT_PROMPT, *CUT_PROMPT]
    prepared, _ = prepare(rows, streaming=True, window=8, shuffle_buffer=0)
    assert len(list(islice(prepared.data.train, 16))) == 16
    assert prepared.data.train.counts.by_split["train"]["rows without a trained token dropped"] >= 8


@PACKED
def test_13_cut_completions_are_counted_and_get_no_eos(prepare, plugins):
    prepared, counts = prepare([*GOOD, *CUT_ANSWER], plugins)
    assert (counts["rows truncated"], counts["completions cut"]) == (4, 4)
    eos = prepared.tokenizer.eos_token_id
    ends = sum(list(row["input_ids"]).count(eos) for row in prepared.data.train)
    assert ends == len(GOOD)
    (verdict,) = [item for item in prepared.verdicts() if item.name == "length"]
    assert "4 completions were cut" in verdict.what
    assert verdict.fix


def test_13_a_cut_conversation_gets_no_closing_token(prepare):
    long = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "word " * 80}]}
    prepared, counts = prepare([*CHAT, long])
    assert counts["completions cut"] == 1
    row = prepared.data.train[len(CHAT)]
    assert len(row["input_ids"]) == 64
    assert row["labels"][-1] == row["input_ids"][-1] != prepared.tokenizer.eos_token_id


@pytest.mark.parametrize("pad", ["EOS", "none"])
@pytest.mark.parametrize(
    "rows", [GOOD, CHAT, [{"text": "long " * n} for n in range(1, 9)]], ids=["pairs", "chat", "text"]
)
def test_14_the_closing_eos_is_trained_and_padding_is_not(prepare, pad, rows):
    tokenizer = tiny_tokenizer(pad=False, chat_template=CHATML)
    if pad == "EOS":
        tokenizer.pad_token = tokenizer.eos_token
    rows = [*rows[:3], {key: value * 2 for key, value in rows[3].items()}]  # of several lengths
    prepared, _ = prepare(rows, tokenizer=tokenizer)
    batch = prepared.collator([prepared.data.train[index] for index in range(len(rows))])
    padding = batch["attention_mask"] == 0
    assert padding.any()
    assert (batch["labels"][padding] == -100).all()
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        assert ids[labels != -100][-1] == tokenizer.eos_token_id


TEXT = [{"text": "hello there"}] * 3
TEMPLATE = "completion_only:response_template=### Answer:"
LOSS = {name: ({"formats": {"loss": name}},) for name in ("completion", "assistant")}
USERS = [{"messages": [{"role": "user", "content": "hello"}]}] * 3
IMPOSSIBLE = {
    "completion loss on text": (TEXT, LOSS["completion"], "'text'", "has no completion", "hello there"),
    "assistant loss on text": (TEXT, LOSS["assistant"], "'text'", "has no assistant turns", "hello there"),
    "assistant loss on pairs": (GOOD, LOSS["assistant"], "'prompt'", "has no assistant turns", "q0?"),
    "no assistant turn": (USERS, (), "no assistant turn", "'role': 'user'", "hello"),
    "a template without a match": (TEXT, (TEMPLATE,), "no response template '### Answer:'", "hello there"),
    "a template that no conversation has": (CHAT, (TEMPLATE,), "no response template '### Answer:'", "it is "),
    "no instruction template": (
        [{"text": "### Answer: yes"}],
        (f"{TEMPLATE},instruction_template=### Question:",),
        "no instruction template '### Question:'",
        "### Answer: yes",
    ),
}


@STREAMED
@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_15_the_error_names_what_is_missing_and_shows_a_row(prepare, data, case):
    rows, plugins, *parts = IMPOSSIBLE[case]
    with pytest.raises(SftkitError) as caught:
        list(islice(prepare(rows, plugins, **data)[0].data.train, 1))
    assert all(part in str(caught.value) for part in parts)
    assert all(problem.fix for problem in caught.value.problems)


def test_15_the_command_names_the_template_and_shows_a_row(start, configure):
    config = configure(rows=TEXT, plugins={"completion_only": {"response_template": "### Answer:"}})
    command = start("run", config, "-o", "run")
    assert command.wait() == 2
    assert "no response template '### Answer:' in the text" in command.output
    assert "hello there" in command.output
