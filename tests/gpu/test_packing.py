"""Packed documents do not see each other on the device, and the proof before the first step shows it there."""

from __future__ import annotations

import logging

import pytest
import torch

from sftkit.errors import ConfigError
from sftkit.testing import packed_rows, tiny_config
from sftkit_plugins.flash_attn.model import attending
from sftkit_plugins.packing import Packing
from sftkit_plugins.pad import PadCollator

pytestmark = pytest.mark.gpu

FIRST, SECOND = 21, 40
FLOAT32: dict[str, bool] = {}
MIXED = {"bf16": True}
CASES = [(name, kind) for name in ("llama", "gpt2") for kind in ("eager", "sdpa", "varlen", "sdpa_flash")]
CASES += [("llama", "flex")]  # which transformers does not have for GPT-2


def rows():
    lengths = (33, 60, 21, 90, 14, 47, 38, 75)
    ids = [list(range(first, first + length)) for first, length in enumerate(lengths, 3)]
    examples = [{"input_ids": document, "labels": document} for document in ids]
    return packed_rows(Packing(), examples, max_length=128)


def prove(model, train=FLOAT32):
    with Packing().training_context(model, tiny_config(train=train), rows(), PadCollator(2)):
        pass


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize(
    ("dtype", "train"), [(torch.float32, FLOAT32), (torch.bfloat16, FLOAT32), (torch.float32, MIXED)]
)
def test_the_proof_holds_in_every_precision(build, caplog, architecture, attention, dtype, train):
    caplog.set_level(logging.INFO, "sftkit")

    prove(build(architecture, dtype, attn_implementation=attention), train)

    assert not caplog.messages


@pytest.mark.parametrize("implementation", ["varlen", "sdpa_flash", "flex"])
@pytest.mark.parametrize(("dtype", "train"), [(torch.bfloat16, FLOAT32), (torch.float32, MIXED)])
def test_the_proof_holds_under_flash_attention(build, device, implementation, dtype, train):
    if implementation == "flex" and device.type == "cpu":
        pytest.skip("flex is refused on a CPU")
    model = build("llama", dtype)

    with attending(model, implementation):
        prove(model, train)


@pytest.mark.parametrize(("dtype", "train"), [(torch.bfloat16, FLOAT32), (torch.float32, FLOAT32)])
def test_a_model_that_ignores_document_boundaries_gets_a_mask(build, caplog, dtype, train):
    caplog.set_level(logging.INFO, "sftkit")

    prove(build("opt", dtype, ffn_dim=128, word_embed_proj_dim=build("opt").config.hidden_size, dropout=0.0), train)

    assert "opt ignores document boundaries" in caplog.text


def test_a_model_whose_documents_see_each_other_is_refused(build):
    with pytest.raises(ConfigError, match="mamba does not isolate packed documents"):
        prove(build("mamba", torch.bfloat16))


@pytest.mark.parametrize(("dtype", "train"), [(torch.bfloat16, FLOAT32), (torch.float32, FLOAT32)])
def test_windows_of_masked_models_are_kept(build, caplog, dtype, train):
    caplog.set_level(logging.INFO, "sftkit")
    layers = ["sliding_attention", "full_attention"]
    layers *= build("llama").config.num_hidden_layers // 2

    prove(build("gpt_oss", dtype, layer_types=layers, sliding_window=16, num_local_experts=4), train)

    assert "gpt_oss ignores document boundaries" in caplog.text


@pytest.mark.parametrize(("architecture", "attention"), CASES)
def test_the_second_document_has_no_gradient_at_all_by_the_first(build, device, architecture, attention):
    if attention == "flex" and device.type == "cpu":
        pytest.skip("flex has no backward on a CPU")
    own = attention in ("eager", "sdpa")
    model = build(architecture, torch.bfloat16, **({"attn_implementation": attention} if own else {}))
    ids = torch.arange(3, 3 + FIRST + SECOND, device=device)[None]
    places = torch.cat([torch.arange(FIRST), torch.arange(SECOND)])[None].to(device)
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()

    def gradient():
        logits = model(inputs_embeds=embedded, position_ids=places, use_cache=False).logits
        logits[0, FIRST:].float().square().sum().backward()
        return embedded.grad[0].abs().amax(1)

    if own:
        found = gradient()
    else:
        with attending(model, attention):
            found = gradient()

    assert float(found[:FIRST].max()) == 0
    assert float(found[FIRST:].min()) > 0
