"""A traced step takes the bytes that a real one allocates, and changes nothing."""

from __future__ import annotations

import contextlib

import pytest
import torch
import transformers
from packaging.version import Version
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from sftkit.memory.checkpointing import (
    checkpointed,
    full_checkpointing,
    offloaded_checkpointing,
    selective_checkpointing,
)
from sftkit.memory.trace import LiveBytes, fake_weights, trace_step
from sftkit.testing import tiny_model
from sftkit.training.batches import Batch
from sftkit.training.head import LossHead
from sftkit.training.loss import HeadLoss

CPU = torch.device("cpu")


def refused_before(version):
    """Expect older versions of transformers to read a tensor's value in the forward, which fake tensors lack."""
    if Version(transformers.__version__) < Version(version):
        return pytest.raises(DataDependentOutputException)
    return contextlib.nullcontext()


def allocated(model, batch, autocast=None):
    """The peak of the bytes that a step allocates on the CPU, according to the profiler of PyTorch."""
    head, known = LossHead(model, HeadLoss()), Batch.of(dict(batch))

    def step():
        with torch.autocast("cpu", autocast) if autocast else contextlib.nullcontext():
            total, _, _ = head.ask(model, known.inputs, known.targets)
        total.backward()

    with head.installed():
        step()  # allocates what is allocated only once
        model.zero_grad()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            step()
    now = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    assert peak > 1e6
    return peak


def traced(model, batch, autocast=None, accumulates=False):
    return trace_step(model, batch, CPU, loss=HeadLoss(), autocast=autocast, accumulates=accumulates)


KINDS = {
    "none": lambda model: contextlib.nullcontext(),
    "full": lambda model: checkpointed(model, full_checkpointing()),
    "selective": lambda model: checkpointed(model, selective_checkpointing()),
    "every second layer": lambda model: checkpointed(model, full_checkpointing(), every=2),
}
CASES = {
    "llama": {},
    "llama, eager attention": {"attn_implementation": "eager"},
    "gpt2, with dropout": {"architecture": "gpt2", "attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1},
    "qwen3": {"architecture": "qwen3"},
    "gemma2, whose logits are capped": {"architecture": "gemma2"},
    "mixtral, with experts": {"architecture": "mixtral"},
    "opt, with tied embeddings": {"architecture": "opt", "word_embed_proj_dim": 64},
}


@pytest.mark.parametrize("case", CASES)
def test_a_traced_step_takes_what_the_profiler_sees_allocated(make_model, batch, case):
    model = make_model(**CASES[case])
    with refused_before("5.23" if "opt" in case else "5.0"):
        assert traced(model, batch).total == pytest.approx(allocated(model, batch), rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_traced_step_is_exact_with_checkpointing(make_model, batch, kind, architecture):
    model = make_model(architecture)
    with KINDS[kind](model):
        assert traced(model, batch).total == pytest.approx(allocated(model, batch), rel=0.01)


def test_a_traced_step_is_exact_on_packed_rows(make_model, packed_batch):
    model = make_model()
    assert traced(model, packed_batch).total == pytest.approx(allocated(model, packed_batch), rel=0.01)


@pytest.mark.skipif(
    Version(torch.__version__) < Version("2.11"), reason="this torch does not trace autocast as it is in a step"
)
@pytest.mark.parametrize("kind", ["none", "full"])
def test_a_traced_step_is_close_in_mixed_precision(make_model, batch, kind):
    model = make_model()
    with KINDS[kind](model):
        found = traced(model, batch, torch.bfloat16).total
        assert found == pytest.approx(allocated(model, batch, torch.bfloat16), rel=0.05)


@pytest.mark.parametrize(
    "kind", [pytest.param("none", marks=pytest.mark.slow), pytest.param("selective", marks=pytest.mark.slow), "full"]
)
def test_a_traced_step_is_exact_with_adapters(make_model, batch, with_lora, kind):
    model = with_lora(make_model(), lora_dropout=0.1)
    with KINDS[kind](model):
        assert traced(model, batch).total == pytest.approx(allocated(model, batch), rel=0.01)


SETTINGS = {
    "8 bits": {"load_in_8bit": True},
    "4 bits": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "4 bits, scales quantized": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True},
}


@pytest.mark.parametrize(
    "how", ["4 bits", *(pytest.param(how, marks=pytest.mark.slow) for how in SETTINGS if how != "4 bits")]
)
def test_a_traced_step_is_close_on_a_quantized_model(make_model, batch, with_lora, tmp_path, how):
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    make_model(hidden_size=256, intermediate_size=704, head_dim=64).save_pretrained(tmp_path)
    settings = BitsAndBytesConfig(**SETTINGS[how])
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=settings, dtype=torch.float32)
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # or the first forward without gradients repacks the weights
    adapted = with_lora(model)
    before = [value.clone() for value in adapted.parameters()]
    found = traced(adapted, batch).total
    assert all(torch.equal(one, two) for one, two in zip(before, adapted.parameters(), strict=True))
    assert found == pytest.approx(allocated(adapted, batch), rel=0.1)


def test_a_model_on_the_meta_device_takes_as_much_as_a_loaded_one(make_model, batch):
    loaded = make_model()
    with torch.device("meta"):
        unloaded = type(loaded)(loaded.config)
    assert traced(unloaded, batch) == traced(loaded, batch)


def test_accumulated_gradients_exist_before_the_step(make_model, batch):
    model = make_model()
    trained = sum(weight.nbytes for weight in model.parameters())
    assert traced(model, batch, accumulates=True).gradients >= trained
    assert traced(model, batch).gradients < trained


def kept_by_the_forward(model, checkpointing):
    """Bytes that a device other than the host holds once the hidden states are computed."""
    there = torch.device("meta")
    fake, counted = FakeTensorMode(allow_non_fake_inputs=True), LiveBytes(there)
    with checkpointing, fake, fake_weights(model, fake, counted, there):
        ids = torch.zeros(4, 256, dtype=torch.long, device=there)
        counted.ignore(ids)
        with counted:
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            assert hidden.requires_grad
            return counted.live["activations"]


def test_offloaded_layers_leave_the_device(make_model):
    model = make_model()
    kept = kept_by_the_forward(model, checkpointed(model, full_checkpointing()))
    offloaded = offloaded_checkpointing(full_checkpointing(), pin_memory=False)
    left = kept_by_the_forward(model, checkpointed(model, offloaded))
    inputs_of_layers = model.config.num_hidden_layers * 4 * 256 * model.config.hidden_size * 4
    assert kept - left == pytest.approx(inputs_of_layers, rel=0.3)


def test_tracing_changes_neither_the_model_nor_the_random_state(make_model, batch, with_lora):
    model = with_lora(make_model(attention_dropout=0.1), lora_dropout=0.1).eval()
    before = {name: (id(value), value.clone()) for name, value in model.state_dict(keep_vars=True).items()}
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    attributes = [sorted(vars(module)) for module in model.modules()]
    traced(model, batch)
    for name, value in model.state_dict(keep_vars=True).items():
        assert id(value) == before[name][0]
        assert torch.equal(value, before[name][1])
    assert all(weight.grad is None for weight in model.parameters())
    assert [module.training for module in model.modules()] == modes
    assert [sorted(vars(module)) for module in model.modules()] == attributes
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_that_fails_gets_its_weights_back(make_model, batch):
    model = make_model()
    weight = model.get_input_embeddings().weight
    with pytest.raises((RuntimeError, ValueError, IndexError, TypeError)):
        traced(model, {**batch, "input_ids": torch.zeros(2, 3, 4, 5, dtype=torch.long)})
    assert model.get_input_embeddings().weight is weight


def test_tensors_that_a_forward_stores_on_its_modules_are_real_again(batch):
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 10000.0}
    sizes = {"original_max_position_embeddings": 16, "max_position_embeddings": 64}
    model = tiny_model("phi3", vocab_size=1000, rope_parameters=rope, **sizes)
    before = [dict(vars(module)) for module in model.modules()]
    with refused_before("5.21"):
        traced(model, batch)
    after = [vars(module) for module in model.modules()]
    assert all(one.keys() == two.keys() for one, two in zip(before, after, strict=True))
    assert all(one[key] is two[key] for one, two in zip(before, after, strict=True) for key in one)


def test_a_padding_free_batch_takes_as_much_as_its_examples():
    model = tiny_model()
    ids = torch.randint(3, 300, (4, 64))
    labels = ids.clone()
    labels[:, 0] = -100
    rows = {"input_ids": ids, "labels": labels}
    flat = {name: value.reshape(1, -1) for name, value in rows.items()}
    flat |= {"position_ids": torch.arange(64).repeat(4)[None], "row_lengths": torch.tensor([64] * 4)}
    assert traced(model, flat).total == traced(model, rows).total
