"""Training on completions only: templates are found by characters, or by token ids in context."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from datasets import Dataset, Features, Value

from sftkit.data.documents import Skipped, documents_of
from sftkit.data.encode import encode
from sftkit.errors import ConfigError, DataError
from sftkit.plugin.registry import discover
from sftkit.plugin.select import Choice, parse_choice, select
from sftkit.run.pipeline import Pipeline
from sftkit.testing import CHATML, tiny_config, tiny_model, tiny_tokenizer
from sftkit_plugins.completion_only import CompletionOnly

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
DIALOGUE = "### User: Hello\n\n### Assistant: Hi, how can I help you?"


def trained(texts, tokenizer=None, **options):
    """The trained text of each document, or the reason why it is skipped."""
    plugins, problems = select([Choice("completion_only", options)])
    assert not problems, problems
    formatter = plugins.hook.make_formatter(
        columns=Features({"text": Value("string")}),
        tokenizer=tokenizer or tiny_tokenizer(),
        processor=None,
        config=tiny_config(),
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


def test_the_text_after_the_last_response_template_is_trained():
    text = "### Question: a\n ### Answer: b ### Answer: c"
    assert trained([text], response_template=" ### Answer:") == [" c"]


def test_an_instruction_template_trains_every_answer():
    text = "### Human: a### Assistant: b### Human: c### Assistant: d"
    found = trained([text], response_template="### Assistant:", instruction_template="### Human:")
    assert found == [" b d"]


def test_rows_without_a_template_are_skipped_with_one_reason():
    found = trained(["no template", "### A: x", "none"], response_template="### A:")
    assert found == ["no response template '### A:' in the text", " x", "no response template '### A:' in the text"]


def test_a_template_is_found_although_it_is_tokenized_differently_in_context():
    tokenizer = llama2()
    assert tokenizer.encode("### Assistant:", add_special_tokens=False) == [835, 4007, 22137, 29901]
    assert trained([DIALOGUE], tokenizer, response_template="### Assistant:") == [" Hi, how can I help you?"]


def test_a_template_of_token_ids_must_be_taken_in_context():
    tokenizer = llama2()
    ids = tokenizer.encode("\n### Assistant:", add_special_tokens=False)[2:]
    assert ids == [2277, 29937, 4007, 22137, 29901]
    assert trained([DIALOGUE], tokenizer, response_template=ids) == [" Hi, how can I help you?"]
    alone = tokenizer.encode("### Assistant:", add_special_tokens=False)
    assert trained([DIALOGUE], tokenizer, response_template=alone)[0].startswith("no response template")


def test_only_the_outputs_of_real_rows_are_trained():
    if not SHARED.exists():
        pytest.skip("the shared data is not beside the project")
    rows = json.loads((SHARED / "code_alpaca_2k.json").read_text())[:100]
    texts = [f"### Question: {row['instruction']}\n ### Answer: {row['output']}" for row in rows]
    found = trained(texts, response_template=" ### Answer:")
    assert found == [f" {row['output']}" for row in rows]


def test_dropped_rows_are_counted_and_an_error_shows_a_row(tmp_path):
    rows = [{"text": "### A: Paris"}, {"text": "no template here"}]
    options = {"model": tiny_model(), "tokenizer": tiny_tokenizer()}
    train = {"output_dir": str(tmp_path / "a"), "max_steps": 1, "use_cpu": True}
    result = Pipeline(data=rows, plugins=[CompletionOnly(response_template="### A:")], train=train, **options).run()
    counts = json.loads((result.directory / "manifest.json").read_text())["data"]["train"]
    assert counts["rows dropped: no response template '### A:' in the text"] == 1
    train = {**train, "output_dir": str(tmp_path / "b")}
    with pytest.raises(DataError, match=r"no response template '### B:'.*### A: Paris"):
        Pipeline(data=rows, plugins=[CompletionOnly(response_template="### B:")], train=train, **options).run()


@pytest.mark.parametrize("options", [{"loss": "all"}, {"loss": "all", "formatting": lambda row: row["text"]}])
def test_the_option_loss_of_the_formatter_is_rejected(options):
    with pytest.raises(ConfigError, match="loss=all cannot be combined with plugin completion_only"):
        formatter_for([{"text": "a"}], tiny_tokenizer(), options, response_template="x")


GUANACO = "### Human: a\nb### Assistant: c### Human: d### Assistant: e"


def formatter_for(rows, tokenizer, formats=None, **options):
    """The formatter for rows of any format, and their columns."""
    plugins, problems = select([Choice("completion_only", options), Choice("formats", formats or {})])
    assert plugins is not None, problems
    dataset = Dataset.from_list(rows)
    formatter = plugins.hook.make_formatter(
        columns=dataset.features, tokenizer=tokenizer, processor=None, config=tiny_config()
    )
    return formatter, dataset[:]


def test_the_spans_contain_the_whole_text():
    formatter, columns = formatter_for(
        [{"text": GUANACO}], tiny_tokenizer(), response_template="### Assistant:", instruction_template="### Human:"
    )
    (document,) = formatter(columns)
    assert "".join(span.text for span in document) == GUANACO


def test_consecutive_answers_are_trained_up_to_the_next_instruction():
    text = "### Human: a### Assistant: b### Assistant: c### Human: d"
    found = trained([text], response_template="### Assistant:", instruction_template="### Human:")
    assert found == [" b### Assistant: c"]


def test_a_dialogue_that_begins_with_an_answer_keeps_it():
    text = "### Assistant: hello### Human: a### Assistant: b"
    assert trained([text], response_template="### Assistant:", instruction_template="### Human:") == [" hello b"]


def test_a_text_without_the_instruction_template_is_skipped():
    text = "### User: a### Assistant: b### User: c### Assistant: d"
    found = trained([text], response_template="### Assistant:", instruction_template="### Human:")
    assert found == ["no instruction template '### Human:' in the text"]


def test_text_and_token_ids_can_be_combined():
    tokenizer = llama2()
    text = "### User: Hello\n\n### Assistant: Hi\n\n### User: Bye\n\n### Assistant: See you"
    ids = [2277, 29937, 4007, 22137, 29901]
    found = trained([text], tokenizer, response_template=ids, instruction_template="### User:")
    assert found == [" Hi\n\n See you"]


def test_both_templates_can_be_token_ids():
    tokenizer = llama2()
    text = "Dialogue:\n### User: Hello\n### Assistant: Hi\n### User: Bye\n### Assistant: See you"
    user = tokenizer.encode("\n### User:", add_special_tokens=False)[2:]
    options = {"response_template": [2277, 29937, 4007, 22137, 29901], "instruction_template": user}
    assert trained([text], tokenizer, **options) == [" Hi\n See you"]


def test_token_ids_are_searched_in_the_tokens_including_bos():
    tokenizer = tiny_tokenizer()
    bos, first = tokenizer("A: x")["input_ids"][:2]
    assert bos == tokenizer.bos_token_id
    assert trained(["A: x"], tokenizer, response_template=[bos, first]) == [": x"]


def test_labels_of_real_rows_equal_masking_by_token_ids(real_data):
    tokenizer = llama2()
    rows = json.loads((real_data / "code_alpaca_2k.json").read_text())[:200]
    texts = [f"### Question: {row['instruction']}\n### Answer: {row['output']}" for row in rows]
    template = tokenizer.encode("\n### Answer:", add_special_tokens=False)[2:]
    formatter, columns = formatter_for([{"text": text} for text in texts], tokenizer, response_template=template)
    made = encode(formatter(columns), tokenizer, "bos_eos" if formatter.adds_special_tokens else "none")
    ids, labels, offsets = made.ids_S, made.labels_S, made.offsets_N1
    for number, text in enumerate(texts):
        expected = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        width = len(template)
        last = max(at for at in range(len(expected)) if expected[at : at + width] == template)
        begin, end = offsets[number], offsets[number + 1]
        assert ids[begin:end].tolist() == expected
        assert labels[begin:end].tolist() == [-100] * (last + width) + expected[last + width :]


def test_a_conversation_is_split_by_the_template_not_by_turns():
    rewriting = "{% for m in messages %}<{{ m.role }}>{% if loop.last %}THINK {% endif %}{{ m.content }}{% endfor %}"
    turns = [{"role": role, "content": role[0]} for role in ("user", "assistant", "user", "assistant")]
    tokenizer = tiny_tokenizer(chat_template=rewriting)
    formatter, columns = formatter_for([{"messages": turns}], tokenizer, response_template="<assistant>")
    (document,) = documents_of(formatter(columns))
    assert [span.text for span in document if span.trained] == ["THINK a"]


def test_special_tokens_are_those_of_the_wrapped_formatter():
    tokenizer = tiny_tokenizer(chat_template=CHATML)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    chat, _ = formatter_for([{"messages": turns}], tokenizer, response_template="x")
    text, _ = formatter_for([{"text": "a"}], tokenizer, response_template="x")
    assert (chat.adds_special_tokens, text.adds_special_tokens) == (False, True)


def test_rows_that_the_format_skips_stay_skipped():
    assert trained(["", "### A: x", ""], response_template="### A:") == ["empty text", " x", "empty text"]


def test_completions_are_found_in_the_text_of_a_formatting_function():
    def formatting_prompts_func(example):
        pairs = zip(example["instruction"], example["output"], strict=True)
        return [f"### Question: {question}\n ### Answer: {answer}" for question, answer in pairs]

    rows = [{"instruction": f"q{number}", "output": f"a{number}"} for number in range(4)]
    formats = {"formatting": formatting_prompts_func}
    formatter, columns = formatter_for(rows, tiny_tokenizer(), formats, response_template=" ### Answer:")
    found = [[span.text for span in document if span.trained] for document in formatter(columns)]
    assert found == [[f" a{number}"] for number in range(4)]


@pytest.mark.parametrize("template", ["### A:", [5, 6]])
def test_the_formatter_can_be_pickled(template):
    formatter, columns = formatter_for([{"text": "### A: x"}], tiny_tokenizer(), response_template=template)
    assert pickle.loads(pickle.dumps(formatter))(columns) == formatter(columns)


@pytest.mark.parametrize(
    ("argument", "template"),
    [
        ("completion_only:response_template=### Response:", "### Response:"),
        ("completion_only:response_template=[2277, 29937]", [2277, 29937]),
        ('completion_only:response_template="\\n### Response:"', "\n### Response:"),
    ],
)
def test_templates_can_be_written_on_the_command_line(argument, template):
    choice = parse_choice(argument, discover())
    assert CompletionOnly(**choice.options).response_template == template


@pytest.mark.parametrize("template", ["", [], None, ["### A:"]])
def test_an_invalid_template_is_rejected(template):
    with pytest.raises(ConfigError, match="response_template"):
        CompletionOnly(response_template=template)


def test_token_ids_need_a_fast_tokenizer():
    from transformers import PreTrainedTokenizer

    class Slow(PreTrainedTokenizer):
        vocab_size = 0

        def get_vocab(self):
            return {}

    with pytest.raises(ConfigError, match="write the templates as text"):
        formatter_for([{"text": "a"}], Slow(), response_template=[1])
