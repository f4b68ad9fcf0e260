"""`sftkit check` on what ends the answers, on the chat template, and on rows that are held out of the training data."""

from __future__ import annotations

import json

import pytest
from transformers import GenerationConfig

from sftkit import Pipeline, RunError
from sftkit.testing import CHATML, tiny_conversations, tiny_model, tiny_tokenizer
from sftkit_commands.check.checks import run_checks

END = "<end_of_turn>"
#: Turns end with a token that is not the tokenizer's EOS, as those of Gemma do.
GEMMA = (
    "{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PAIRS = [{"prompt": f"question {n}? ", "completion": f"answer {n}"} for n in range(20)]
ALPACA = [{"instruction": f"Add one to {n}.", "input": "", "output": str(n + 1)} for n in range(20)]


def tokenizer_with(template, *tokens):
    tokenizer = tiny_tokenizer(chat_template=template)
    tokenizer.add_tokens([*tokens], special_tokens=True)
    return tokenizer


def pipeline(tmp_path, rows, *, tokenizer=None, model=None, plugins=(), eval=None, **data):
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if data.pop("mix", False):
        pairs = tmp_path / "pairs.jsonl"
        pairs.write_text("".join(json.dumps(row) + "\n" for row in PAIRS), encoding="utf-8")
        data["mix"] = {str(path): 1.0, str(pairs): 1.0}
    else:
        data["train"] = str(path)
    train = {"output_dir": str(tmp_path / "run"), "max_steps": 1, "use_cpu": True}
    config = {"data": {"max_length": 128, "cache": False, **data}, "train": train}
    tokenizer = tokenizer or tiny_tokenizer(chat_template=CHATML)
    return Pipeline(model or tiny_model(), config=config, tokenizer=tokenizer, plugins=plugins, eval=eval)


def verdict(tmp_path, name, rows, **options):
    """The one verdict of this name on the training data; None without one."""
    found = [item for item in run_checks(pipeline(tmp_path, rows, **options)).verdicts if item.name == name]
    assert len(found) <= 1
    return found[0] if found else None


def model_directory(path, tokenizer, ends, file="generation_config.json"):
    """A directory with a model whose generation configuration, or whose own, lists these ids as EOS."""
    model = tiny_model(eos_token_id=ends if file == "config.json" else 1, vocab_size=len(tokenizer))
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=2)
    model.save_pretrained(path)
    if file == "config.json":
        (path / "generation_config.json").unlink()
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_the_models_list_of_eos_tokens_counts(tmp_path, file):
    tokenizer = tokenizer_with(GEMMA, "<start_of_turn>", END)
    ends = [1, tokenizer.convert_tokens_to_ids(END)]
    model = model_directory(tmp_path / "model", tokenizer, ends, file)
    found = verdict(tmp_path, "EOS", tiny_conversations(), tokenizer=tokenizer, model=model)
    assert (found.status, found.what) == ("ok", f"train: EOS '{END}' is trained in 100.0% of the rows")


def test_the_list_of_a_loaded_model_counts(tmp_path):
    tokenizer = tokenizer_with(GEMMA, "<start_of_turn>", END)
    model = tiny_model(vocab_size=len(tokenizer))
    model.generation_config.eos_token_id = [1, tokenizer.convert_tokens_to_ids(END)]
    assert verdict(tmp_path, "EOS", tiny_conversations(), tokenizer=tokenizer, model=model).status == "ok"


def test_an_end_token_at_which_nothing_stops_is_named(tmp_path):
    tokenizer = tokenizer_with(GEMMA, "<start_of_turn>", END)
    found = verdict(tmp_path, "EOS", tiny_conversations(), tokenizer=tokenizer, model=tiny_model(vocab_size=400))
    assert found.status == "wrong"
    assert (
        found.what == f"train: EOS '</s>' is trained in 0.0% of the rows; 20 rows end with '{END}', which is not an EOS"
    )


def test_cut_completions_explain_the_share_of_eos(tmp_path):
    rows = [*PAIRS[:18], *[{"prompt": "question? ", "completion": "long " * 60}] * 2]
    found = verdict(tmp_path, "EOS", rows)
    assert (found.status, found.what) == (
        "ok",
        "train: EOS '</s>' is trained in 90.0% of the rows; 2 of the others were cut",
    )


def test_rows_that_mostly_lack_eos_are_a_warning(tmp_path):
    """The last answer of these rows is not trained, and earlier ones end without EOS."""
    template = CHATML.replace("{{ eos_token }}", "{% if loop.last %}{{ eos_token }}{% endif %}")
    longer = [{"messages": [*row["messages"], {"role": "user", "content": "and?"}]} for row in tiny_conversations(8)]
    rows = [*tiny_conversations(12, first=100), *longer]
    found = verdict(tmp_path, "EOS", rows, tokenizer=tiny_tokenizer(chat_template=template))
    assert (found.status, found.what) == ("warn", "train: EOS '</s>' is trained in 60.0% of the rows")


def test_an_end_token_that_is_trained_twice_is_a_warning(tmp_path):
    rows = tiny_conversations()
    for row in rows[:3]:
        row["messages"][1]["content"] += "</s>"
    found = verdict(tmp_path, "EOS twice", rows)
    assert found.status == "warn"
    assert "in 3 rows" in found.what
    assert verdict(tmp_path, "EOS twice", tiny_conversations()) is None


@pytest.mark.parametrize("template", ["chatml", "zephyr", "llama3", "plain"])
@pytest.mark.parametrize("rows", [ALPACA, PAIRS, [{"text": "some words"}, {"text": "more words"}]])
def test_a_template_that_no_row_was_written_in_is_wrong(tmp_path, template, rows):
    found = verdict(tmp_path, "chat template", rows, plugins=[f"chatml:template={template}"])
    assert found.status == "wrong"
    assert found.what.startswith("chatml set the chat template, but no row of train was written in it")
    assert "drop -p chatml" in found.fix
    with pytest.raises(RunError, match="chatml set the chat template"):
        pipeline(tmp_path, rows, plugins=[f"chatml:template={template}"]).run()


def test_a_stream_of_text_with_a_new_template_is_wrong(tmp_path):
    found = verdict(tmp_path, "chat template", ALPACA, plugins=["chatml"], streaming=True, window=8)
    assert found.status == "wrong"


@pytest.mark.parametrize(
    ("rows", "options"),
    [
        (tiny_conversations(), {"plugins": ["chatml"]}),
        (tiny_conversations(), {"plugins": ["chatml"], "mix": True}),
        (ALPACA, {}),
        (
            [{"text": f"<|im_start|>user\n{n}?<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"} for n in range(20)],
            {"plugins": ["chatml"]},
        ),
    ],
    ids=["conversations", "a mix with conversations", "the tokenizer's own template", "text in the template"],
)
def test_templates_that_rows_are_written_in_raise_no_alarm(tmp_path, rows, options):
    assert verdict(tmp_path, "chat template", rows, **options) is None


def test_a_formatting_function_may_apply_the_new_template(tmp_path):
    tokenizer = tiny_tokenizer()

    def formatted(row):
        return f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n{row['completion']}<|im_end|>\n"

    plugins = ["chatml", {"formats": {"formatting": formatted}}]
    assert verdict(tmp_path, "chat template", PAIRS, tokenizer=tokenizer, plugins=plugins) is None


def test_text_that_ends_with_its_eos_and_a_newline_is_noted(tmp_path):
    rows = [{"text": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello.<|im_end|>\n"}]
    run = pipeline(tmp_path, rows, plugins=["chatml"])
    prepared = run.prepare()
    (row,) = prepared.data.train
    end, newline = prepared.tokenizer("<|im_end|>\n", add_special_tokens=False)["input_ids"]
    assert row["input_ids"][-2:].tolist() == [end, newline]
    assert row["labels"][-2:].tolist() == [end, -100]
    (noted,) = (item for item in run_checks(run).verdicts if item.name == "noted")
    assert (noted.status, noted.what) == ("ok", "train: text already ends with EOS, so none is added (1 row)")


def test_a_fraction_is_held_out_of_data_with_duplicates_with_a_warning(tmp_path):
    """No choice of rows keeps duplicates together, so this warns; the same rows in two files are wrong."""
    rows = [*PAIRS, *PAIRS]
    found = verdict(tmp_path, "held out", rows, eval=0.1)
    assert found.status == "warn"
    assert "remove duplicates" in found.fix
    assert verdict(tmp_path, "held out", PAIRS, eval=PAIRS[:3]).status == "wrong"
    assert verdict(tmp_path, "held out", PAIRS, eval=0.1).status == "ok"


def test_a_stream_is_checked_by_its_first_window(tmp_path):
    report = run_checks(pipeline(tmp_path, PAIRS, streaming=True, window=8))
    assert {"rows", "length", "EOS"} <= {item.name for item in report.verdicts}
    assert not report.wrong
    no_end = tiny_tokenizer(chat_template="{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    rows = tiny_conversations()
    assert verdict(tmp_path, "EOS", rows, tokenizer=no_end, streaming=True, window=8).status == "wrong"
