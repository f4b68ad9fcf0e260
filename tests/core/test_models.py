"""Embedding rows and special tokens, on which a model and its tokenizer must agree; parts of a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sftkit.errors import ConfigError
from sftkit.models.embeddings import NOISE, align_special_tokens, grow_embeddings
from sftkit.models.inspect import linear_names
from sftkit.testing import tiny_model, tiny_tokenizer


def with_tokens(*tokens: str, **options: Any) -> tuple[Any, list[int]]:
    tokenizer = tiny_tokenizer(**options)
    before = len(tokenizer)
    tokenizer.add_tokens(list(tokens), special_tokens=True)
    return tokenizer, list(range(before, len(tokenizer)))


def rows(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return model.get_input_embeddings().weight.data, model.get_output_embeddings().weight.data


def assert_mean_with_noise(new: torch.Tensor, old: torch.Tensor) -> None:
    distance = (new - old.mean(0)) / old.std(0)
    assert 0.5 * NOISE < distance.std() < 2 * NOISE
    assert distance.abs().max() < 6 * NOISE


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_get_rows_near_the_mean_of_the_old_ones(tied: bool) -> None:
    model, (tokenizer, new) = tiny_model(tie_word_embeddings=tied), with_tokens("<a>", "<b>")
    old = [weight.clone() for weight in rows(model)]
    grow_embeddings(model, tokenizer, new)
    for before, after in zip(old, rows(model), strict=True):
        assert torch.equal(after[:320], before)
        assert after.shape[0] == 322
        assert_mean_with_noise(after[320:], before)
        assert not torch.equal(after[320], after[321])


def test_tied_embeddings_stay_one_parameter_and_untied_ones_two() -> None:
    for tied in (True, False):
        model, (tokenizer, new) = tiny_model(tie_word_embeddings=tied), with_tokens("<a>")
        grow_embeddings(model, tokenizer, new)
        assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) is tied


def test_the_configuration_has_the_new_number_of_rows() -> None:
    model, (tokenizer, new) = tiny_model(), with_tokens("<a>")
    grow_embeddings(model, tokenizer, new)
    assert model.config.vocab_size == 321
    assert model(input_ids=torch.tensor([[320]])).logits.shape[-1] == 321


def test_rows_are_never_removed() -> None:
    model = tiny_model(vocab_size=400)
    before = model.get_input_embeddings().weight.clone()
    grow_embeddings(model, tiny_tokenizer(), [])
    assert torch.equal(model.get_input_embeddings().weight, before)


def test_only_the_reserved_row_of_a_new_token_is_initialised() -> None:
    model, (tokenizer, new) = tiny_model(vocab_size=400), with_tokens("<a>")
    for weight in rows(model):
        weight[320:] = 100.0
    grow_embeddings(model, tokenizer, new)
    for weight in rows(model):
        assert_mean_with_noise(weight[320:321], weight[:320])
        assert (weight[321:] == 100.0).all()


def test_rows_are_rounded_up_to_a_multiple_only_if_set() -> None:
    for multiple, expected in ((None, 321), (64, 384)):
        model, (tokenizer, new) = tiny_model(), with_tokens("<a>")
        grow_embeddings(model, tokenizer, new, pad_to_multiple_of=multiple)
        assert model.get_input_embeddings().weight.shape[0] == expected


def test_new_rows_do_not_depend_on_the_global_seed() -> None:
    first, second = tiny_model(), tiny_model()
    tokenizer, new = with_tokens("<a>")
    for seed, model in ((1, first), (2, second)):
        torch.manual_seed(seed)
        grow_embeddings(model, tokenizer, new)
    assert torch.equal(rows(first)[0], rows(second)[0])


def test_new_rows_have_the_dtype_of_the_model() -> None:
    model, (tokenizer, new) = tiny_model().to(torch.bfloat16), with_tokens("<a>")
    grow_embeddings(model, tokenizer, new)
    assert {weight.dtype for weight in rows(model)} == {torch.bfloat16}


def test_the_bias_of_an_output_head_gets_its_mean() -> None:
    model, (tokenizer, new) = tiny_model("phi", num_key_value_heads=4), with_tokens("<a>")
    model.get_output_embeddings().bias.data = torch.arange(320.0)
    grow_embeddings(model, tokenizer, new)
    assert model.get_output_embeddings().bias[320] == torch.arange(320.0).mean()


def test_tokens_that_are_new_to_an_adapter_are_refused() -> None:
    model, (tokenizer, new) = tiny_model(), with_tokens("<a>")
    model.peft_config = {}
    with pytest.raises(ConfigError, match="1 tokens are new to the adapter"):
        grow_embeddings(model, tokenizer, new)


def test_generation_stops_at_the_new_eos_and_at_the_old_ones() -> None:
    model, (tokenizer, _) = tiny_model(), with_tokens("<a>")
    model.generation_config.eos_token_id = [1, 7]
    tokenizer.eos_token = "<a>"
    align_special_tokens(model, tokenizer, changed=True)
    assert model.config.eos_token_id == 320
    assert model.generation_config.eos_token_id == [320, 1, 7]


def test_a_single_eos_stays_an_int() -> None:
    model = tiny_model()
    align_special_tokens(model, tiny_tokenizer(), changed=True)
    assert model.generation_config.eos_token_id == 1


def test_a_changed_pad_token_is_written_to_both_configurations() -> None:
    model, (tokenizer, _) = tiny_model(), with_tokens("<a>")
    tokenizer.pad_token = "<a>"
    align_special_tokens(model, tokenizer, changed=True)
    assert (model.config.pad_token_id, model.generation_config.pad_token_id) == (320, 320)


def test_an_unchanged_tokenizer_only_adds_a_missing_pad_token() -> None:
    model = tiny_model(pad_token_id=None, eos_token_id=7)
    align_special_tokens(model, tiny_tokenizer(), changed=False)
    assert (model.config.pad_token_id, model.generation_config.pad_token_id) == (2, 2)
    assert (model.config.eos_token_id, model.generation_config.eos_token_id) == (7, 7)


def test_eos_never_becomes_the_padding_index_of_the_embedding() -> None:
    model = tiny_model(pad_token_id=None)
    align_special_tokens(model, tiny_tokenizer(pad=False), changed=True)
    assert (model.config.pad_token_id, model.generation_config.pad_token_id) == (None, 1)


def test_linear_layers_are_named_once_in_model_order() -> None:
    assert linear_names(tiny_model("gpt2")) == ["c_attn", "c_proj", "c_fc", "lm_head"]
