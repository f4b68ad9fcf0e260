"""A chat format for a loaded model and tokenizer, as TRL 0.11 had it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sftkit.models.embeddings import grow_embeddings
from sftkit.testing import tiny_model, tiny_tokenizer
from sftkit_plugins.chatml import ChatML
from sftkit_plugins.chatml.chat_format import FORMAT_MAPPING, ChatMlSpecialTokens, setup_chat_format

MESSAGES = [
    {"role": "system", "content": "You are helpful."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi, how can I help you?"},
]
RENDERED = "<|im_start|>system\nYou are helpful.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
RENDERED += "<|im_start|>assistant\nHi, how can I help you?<|im_end|>\n"


def test_model_and_tokenizer_are_changed_and_returned() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    found = setup_chat_format(model, tokenizer)
    assert found == (model, tokenizer)
    special = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token]
    assert special == ["<|im_start|>", "<|im_end|>", "<|im_end|>"]
    assert len(tokenizer) == model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == 322


def test_the_models_configurations_name_the_special_tokens() -> None:
    model, _ = setup_chat_format(tiny_model(), tiny_tokenizer())
    for settings in (model.config, model.generation_config):
        assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (320, 321, 321)


def test_both_tokens_are_special_and_the_others_stay_special() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|tool|>"]})
    setup_chat_format(tiny_model(), tokenizer)
    assert tokenizer.extra_special_tokens == ["<|tool|>", "<|im_start|>", "<|im_end|>"]
    ids = tokenizer("<|im_start|><|tool|><|im_end|>", add_special_tokens=False)["input_ids"]
    assert len(ids) == 3
    assert tokenizer.decode(ids, skip_special_tokens=True) == ""


def test_messages_are_rendered_as_chatml_without_an_added_system_message() -> None:
    _, tokenizer = setup_chat_format(tiny_model(), tiny_tokenizer())
    assert tokenizer.apply_chat_template(MESSAGES, tokenize=False) == RENDERED
    prompt = tokenizer.apply_chat_template(MESSAGES[1:2], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"


def test_the_template_is_that_of_the_plugin() -> None:
    tokenizer = tiny_tokenizer()
    ChatML().add_tokens(tokenizer)
    assert ChatMlSpecialTokens().chat_template == tokenizer.chat_template


def test_the_template_uses_the_tokens_of_the_format() -> None:
    tokenizer = tiny_tokenizer(chat_template=ChatMlSpecialTokens("<b>", "<e>").chat_template)
    assert tokenizer.apply_chat_template(MESSAGES[1:2], tokenize=False) == "<b>user\nHello<e>\n"


def test_the_tokens_define_the_start_of_messages() -> None:
    tokens = FORMAT_MAPPING["chatml"]()
    starts = [tokens.system, tokens.user, tokens.assistant]
    assert starts == ["<|im_start|>system", "<|im_start|>user", "<|im_start|>assistant"]


def test_rows_are_rounded_up_and_initialised_as_in_a_run() -> None:
    model, tokenizer = setup_chat_format(tiny_model(), tiny_tokenizer(), resize_to_multiple_of=64)
    expected: Any = tiny_model()
    grow_embeddings(expected, tokenizer, [320, 321], 64)
    assert model.get_input_embeddings().weight.shape[0] == 384
    assert torch.equal(model.get_input_embeddings().weight, expected.get_input_embeddings().weight)
    assert torch.equal(model.lm_head.weight, expected.lm_head.weight)


def test_a_template_is_replaced_with_its_special_tokens() -> None:
    model, tokenizer = setup_chat_format(tiny_model(), tiny_tokenizer(chat_template="{{ messages }}"))
    assert tokenizer.chat_template == ChatMlSpecialTokens().chat_template
    assert (tokenizer.eos_token, model.config.eos_token_id) == ("<|im_end|>", 321)


def test_the_format_can_be_set_again() -> None:
    model, tokenizer = setup_chat_format(tiny_model(), tiny_tokenizer())
    setup_chat_format(model, tokenizer)
    assert len(tokenizer) == model.get_input_embeddings().weight.shape[0] == 322


def test_an_unknown_format_is_refused_without_changes() -> None:
    tokenizer = tiny_tokenizer()
    with pytest.raises(ValueError, match=r"Format alpaca not available\. Please use one of chatml"):
        setup_chat_format(tiny_model(), tokenizer, format="alpaca")
    assert len(tokenizer) == 320
