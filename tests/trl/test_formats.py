"""Formatting functions for known columns, and ChatML for a model and its tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from sftkit.testing import tiny_model, tiny_tokenizer
from sftkit_trl import (
    ChatMlSpecialTokens,
    conversations_formatting_function,
    get_formatting_func_from_dataset,
    instructions_formatting_function,
    setup_chat_format,
)
from sftkit_trl.extras.dataset_formatting import FORMAT_MAPPING
from sftkit_trl.models.utils import FORMAT_MAPPING as CHAT_FORMATS

RENDERED = "system: Be kind.\nuser: What is 0 plus one?\nassistant: It is 1.\n"


def test_known_formats_are_the_features_of_their_columns() -> None:
    turns = [{"role": "user", "content": "a"}]
    assert Dataset.from_list([{"messages": turns}]).features["messages"] == FORMAT_MAPPING["chatml"]
    assert Dataset.from_list([{"messages": ["a"]}]).features["messages"] != FORMAT_MAPPING["chatml"]
    assert Dataset.from_list([{"prompt": "a", "completion": "b"}]).features == FORMAT_MAPPING["instruction"]


def test_a_function_for_conversations_passes_tools_and_ignores_other_columns() -> None:
    tokenizer = tiny_tokenizer(chat_template="{{ tools }}{% for m in messages %}{{ m.content }}{% endfor %}")
    render = conversations_formatting_function(tokenizer, "turns", tools=[{"name": "sum"}])
    row = {"tags": ["x"], "turns": [{"role": "user", "content": "a"}]}
    assert render(row) == "[{'name': 'sum'}]a"
    assert render({name: [value] * 2 for name, value in row.items()}) == ["[{'name': 'sum'}]a"] * 2


def test_a_function_for_instructions_ignores_other_columns(tokenizer) -> None:
    render = instructions_formatting_function(tokenizer)
    assert render({"tags": ["x"], "prompt": "a", "completion": "b"}) == "user: a\nassistant: b\n"
    assert render({"prompt": ["a", "c"], "completion": ["b", "d"]})[1] == "user: c\nassistant: d\n"


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_a_conversation_or_a_batch_is_rendered(conversations, tokenizer, column) -> None:
    data = Dataset.from_dict({column: conversations["messages"]})
    function: Any = get_formatting_func_from_dataset(data, tokenizer)
    assert function(data[0]) == RENDERED
    assert function(data[0:1]) == [RENDERED]
    assert len(function(data[:])) == len(data)


def test_a_prompt_and_completion_or_a_batch_is_rendered(tokenizer) -> None:
    data = Dataset.from_list([{"prompt": f"{n} and {n}?", "completion": str(2 * n)} for n in range(2)])
    function: Any = get_formatting_func_from_dataset(data, tokenizer)
    assert function(data[0]) == "user: 0 and 0?\nassistant: 0\n"
    assert function(data[:]) == ["user: 0 and 0?\nassistant: 0\n", "user: 1 and 1?\nassistant: 2\n"]


@pytest.mark.parametrize(
    "columns",
    [
        {"text": ["a"]},
        {"question": ["a"], "answer": ["b"]},
        {"prompt": ["a"], "completion": ["b"], "source": ["c"]},
        {"prompt": [1], "completion": [2]},
        {"conversations": [[{"from": "human", "value": "a"}]]},
        {"messages": ["a"]},
    ],
    ids=lambda columns: "-".join(columns),
)
def test_other_columns_have_no_function(tokenizer, columns) -> None:
    assert get_formatting_func_from_dataset(Dataset.from_dict(columns), tokenizer) is None


def test_chatml_adds_tokens_and_embeddings() -> None:
    model, tokenizer = setup_chat_format(tiny_model(), tiny_tokenizer(), resize_to_multiple_of=64)
    chatml = ChatMlSpecialTokens()
    assert {"chatml": ChatMlSpecialTokens} == CHAT_FORMATS
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        chatml.bos_token,
        chatml.eos_token,
        chatml.pad_token,
    )
    assert model.get_input_embeddings().weight.shape[0] % 64 == 0
    assert (model.config.eos_token_id, model.config.pad_token_id) == (tokenizer.eos_token_id,) * 2
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


def test_chatml_renders_conversations(conversations) -> None:
    _, tokenizer = setup_chat_format(tiny_model(), tiny_tokenizer())
    text = tokenizer.apply_chat_template(conversations[0]["messages"], tokenize=False)
    turns = {"system": "Be kind.", "user": "What is 0 plus one?", "assistant": "It is 1."}
    assert text == "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in turns.items())


def test_an_unknown_format_is_an_error() -> None:
    with pytest.raises(ValueError, match="Format alpaca not available"):
        setup_chat_format(tiny_model(), tiny_tokenizer(), format="alpaca")


def test_a_model_with_chatml_is_trained_on_conversations(make, conversations, ids) -> None:
    model, tokenizer = setup_chat_format(tiny_model(), tiny_tokenizer())
    trainer = make(model, args={"max_seq_length": 128}, train_dataset=conversations, tokenizer=tokenizer)
    assert tokenizer.decode(ids(trainer.train_dataset)[0]).startswith("<|im_start|>system\nBe kind.<|im_end|>")
    assert trainer.train().global_step == 2
    batch = next(iter(trainer.get_train_dataloader()))
    ends = batch["input_ids"] == tokenizer.eos_token_id
    inside = ends & batch["attention_mask"].bool()
    assert (batch["labels"][inside] == tokenizer.eos_token_id).all()  # although it is also the pad token
