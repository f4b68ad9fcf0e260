"""NEFTune's noise is bounded by each document's own length, and is gone after training."""

from __future__ import annotations

import math

import pytest
import torch

from sftkit.testing import check_plugin, tiny_model
from sftkit_plugins.neftune import NEFTune

WIDTH, ALPHA = 32, 5.0


def noise(model, **batch):
    """The noise that one forward adds to the embeddings, ``[B, T, d]``."""
    seen = []
    embedding = model.get_input_embeddings()
    with NEFTune(alpha=ALPHA).inject_noise(model):
        handle = embedding.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
        model.train()(**batch, use_cache=False)
        handle.remove()
    return seen[0] - torch.nn.functional.embedding(batch["input_ids"], embedding.weight.detach())


def bound(length):
    return ALPHA / math.sqrt(length * WIDTH)


def assert_uniform(values, limit):
    assert values.abs().max() <= limit * 1.0001
    assert values.abs().max() > 0.9 * limit
    assert values.std() == pytest.approx(limit / math.sqrt(3), rel=0.1)


def test_a_single_document_gets_noise_by_its_length():
    ids = torch.randint(3, 300, (2, 40))
    assert_uniform(noise(tiny_model(), input_ids=ids), bound(40))


def test_packed_documents_get_the_noise_they_get_alone():
    lengths = (8, 24, 64)
    ids = torch.randint(3, 300, (1, sum(lengths)))
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    found = noise(tiny_model(), input_ids=ids, position_ids=positions)
    start = 0
    for length in lengths:
        assert_uniform(found[:, start : start + length], bound(length))
        start += length
    # scaled by the row, the shortest document would have got a third of this
    assert found[:, :8].abs().max() > 2 * bound(sum(lengths))


def test_padding_gets_no_noise_and_does_not_count():
    ids = torch.randint(3, 300, (2, 32))
    mask = torch.ones(2, 32, dtype=torch.long)
    mask[1, 8:] = 0
    found = noise(tiny_model(), input_ids=ids, attention_mask=mask)
    assert_uniform(found[1, :8], bound(8))
    assert not found[1, 8:].any()
    assert_uniform(found[0], bound(32))


def test_there_is_no_noise_in_evaluation():
    model, ids = tiny_model().eval(), torch.randint(3, 300, (1, 9))
    alone = model(ids).logits
    with NEFTune().inject_noise(model):
        assert torch.equal(model(ids).logits, alone)


def test_the_model_is_bitwise_as_it_was_afterwards_and_after_an_exception():
    model, ids = tiny_model().train(), torch.randint(3, 300, (1, 9))
    before = model(ids).logits
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    with NEFTune().inject_noise(model):
        assert not torch.equal(model(ids).logits, before)
    with pytest.raises(RuntimeError), NEFTune().inject_noise(model):
        raise RuntimeError
    assert torch.equal(model(ids).logits, before)
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == hooks


def test_it_works_under_peft():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model(), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))
    ids = torch.randint(3, 300, (1, 20))
    positions = torch.cat([torch.arange(5), torch.arange(15)])[None]
    found = noise(model, input_ids=ids, position_ids=positions)
    assert_uniform(found[:, :5], bound(5))
    assert_uniform(found[:, 5:], bound(15))


def test_the_plugin_is_sound():
    check_plugin(NEFTune())
