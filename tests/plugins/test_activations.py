"""Activation checkpointing changes the memory of a step, but not its results."""

from __future__ import annotations

import logging

import pytest
import torch

from sftkit import Pipeline
from sftkit.errors import ConfigError
from sftkit.memory import device
from sftkit.memory.checkpointing import checkpointed, full_checkpointing, offloaded_checkpointing
from sftkit.memory.trace import trace_step
from sftkit.testing import run_problems, tiny_config, tiny_model, tiny_tokenizer
from sftkit.training.loss import HeadLoss
from sftkit.units import size_text
from sftkit_plugins.activations import Activations, keeping

KINDS = ["selective", "alternating", "full"]
DROPOUT = {
    "llama": {"attention_dropout": 0.2},
    "gpt2": {"attn_pdrop": 0.2, "resid_pdrop": 0.2, "embd_pdrop": 0.2},
    "gemma2": {"attention_dropout": 0.2},
    "mixtral": {"attention_dropout": 0.2},
}
ROWS = [{"prompt": "### Question: ", "completion": "Paris is the capital. " * (1 + n % 4)} for n in range(16)]
CONFIG = tiny_config(train={"use_cpu": True})


def batch(packed=False):
    ids = torch.randint(3, 300, (2, 48), generator=torch.Generator().manual_seed(0))
    if packed:
        return {"input_ids": ids, "labels": ids, "position_ids": (torch.arange(48) % 20).expand(2, 48).contiguous()}
    return {"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)}


def step(model, kind, inputs=None, autocast=False):
    """The loss and all gradients of a step, from a fixed random state."""
    model.zero_grad()
    torch.manual_seed(7)
    with keeping(kind, model), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(**(inputs or batch()), use_cache=False).loss
    with keeping(kind, model):
        loss.backward()
    return loss.detach(), [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


def assert_same(one, two):
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", DROPOUT)
def test_losses_and_gradients_are_unchanged_with_dropout(architecture, kind):
    model = tiny_model(architecture, **DROPOUT[architecture]).train()
    assert_same(step(model, kind), step(model, "none"))


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_unchanged_on_packed_rows_in_mixed_precision(kind):
    model = tiny_model().train()
    assert_same(step(model, kind, batch(packed=True)), step(model, "none", batch(packed=True)))
    assert_same(step(model, kind, autocast=True), step(model, "none", autocast=True))


@pytest.mark.parametrize("kind", KINDS)
def test_losses_and_gradients_are_unchanged_with_adapters_that_have_dropout(kind):
    peft = pytest.importorskip("peft")
    options = peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", lora_dropout=0.2)
    model = peft.get_peft_model(tiny_model(), options).train()
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # zero at first, which would leave the others without a gradient
            torch.nn.init.normal_(weight, std=0.1)
    plain = step(model, "none")
    assert sum(gradient.abs().sum() for gradient in plain[1]) > 0
    assert_same(step(model, kind), plain)


def test_losses_and_gradients_are_unchanged_with_offloading():
    model = tiny_model(attention_dropout=0.2).train()
    plain = step(model, "none")
    with checkpointed(model, offloaded_checkpointing(full_checkpointing(), pin_memory=False)):
        assert_same(step(model, "none"), plain)


def peaks(model):
    found = {}
    for kind in ("none", *KINDS):
        with keeping(kind, model):
            found[kind] = trace_step(
                model, batch(), torch.device("cpu"), loss=HeadLoss(), autocast=None, accumulates=False
            ).activations
    return found


@pytest.mark.parametrize(
    "architecture", ["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "qwen3"))]
)
def test_each_kind_keeps_less_than_the_previous_one(architecture):
    layers = {"n_layer": 8} if architecture == "gpt2" else {"num_hidden_layers": 8}
    found = peaks(tiny_model(architecture, **layers))
    assert found["full"] < 0.8 * found["selective"] < 0.8 * 0.9 * found["none"]
    assert found["full"] < 0.9 * found["alternating"] < 0.9 * 0.9 * found["selective"]


def state(model):
    return [{name: id(value) for name, value in vars(module).items()} for module in model.modules()]


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_is_restored_even_after_an_exception(kind):
    model = tiny_model()
    before = state(model)
    with keeping(kind, model):
        assert model.is_gradient_checkpointing
    assert state(model) == before
    with pytest.raises(RuntimeError, match="training"), keeping(kind, model):
        raise RuntimeError("training failed")
    assert state(model) == before


def deep_model():
    return tiny_model("llama", num_hidden_layers=6, vocab_size=64).train()


@pytest.mark.parametrize(
    "room",
    [
        "none",
        pytest.param("selective", marks=pytest.mark.slow),
        pytest.param("alternating", marks=pytest.mark.slow),
        pytest.param("full", marks=pytest.mark.slow),
    ],
)
def test_auto_chooses_the_first_kind_that_fits_and_logs_it(monkeypatch, caplog, room):
    from sftkit.memory import estimate_memory

    model = deep_model()
    inputs = {name: value % 64 for name, value in batch().items()}
    totals = {}
    for kind in ("none", "selective", "alternating", "full"):
        with keeping(kind, model):
            totals[kind] = estimate_memory(model, inputs, CONFIG)
    held = totals[room].available.held
    most = totals[room].total + 1000
    monkeypatch.setattr("sftkit.memory.estimate.memory_of", lambda _: device.DeviceMemory("cpu", held, most))
    monkeypatch.setattr("sftkit.memory.estimate.NEAR", 1.0)
    before = state(model)
    with caplog.at_level(logging.INFO, "sftkit"), Activations().reduce_activations(model, CONFIG, inputs, None):
        assert (state(model) == before) == (room == "none")
        assert model.is_gradient_checkpointing == (room != "none")
    (line,) = [record.getMessage() for record in caplog.records if "activations" in record.getMessage()]
    assert f"checkpointing {room} (" in line
    assert f"available: {size_text(most)} on cpu" in line


def test_auto_reports_the_memory_of_each_part_if_nothing_fits(monkeypatch):
    monkeypatch.setattr("sftkit.memory.estimate.memory_of", lambda _: device.DeviceMemory("cpu", 10**8, 10**8))
    with pytest.raises(ConfigError, match=r"does not fit, even with checkpointing full.*weights.*per_device"):
        Activations().reduce_activations(tiny_model(), CONFIG, batch(), None)


def test_a_failed_estimate_is_an_error_that_names_the_option():
    model = tiny_model()
    model.register_forward_pre_hook(lambda *_: bool(torch.zeros(1).sum().item() > 0))
    with pytest.raises(ConfigError, match="option checkpointing"):
        Activations().reduce_activations(model, CONFIG, batch(), None)


def test_a_model_without_layers_to_checkpoint_is_refused():
    with pytest.raises(ConfigError, match="no layers"), keeping("full", torch.nn.Linear(2, 2)):
        pass


def test_a_model_that_is_already_checkpointed_is_refused():
    model = tiny_model()
    with keeping("full", model), pytest.raises(ConfigError, match="already"):
        Activations(checkpointing="none").reduce_activations(model, CONFIG, batch(), None)


def problems(plugin, **train):
    return [problem.where for problem in run_problems(plugin, train={"use_cpu": True, **train}) if problem.fix]


@pytest.mark.parametrize("key", ["gradient_checkpointing", "activation_checkpointing"])
def test_a_second_setting_for_checkpointing_is_refused(key):
    assert problems(Activations(), **{key: True}) == [f"train.{key}"]
    assert problems(Activations()) == []


def test_offloading_is_refused_on_a_cpu_or_without_full_checkpointing():
    assert problems(Activations(offload=True, checkpointing="full")) == ["plugin activations, option offload"]
    assert problems(Activations(offload=True)) == ["plugin activations, option offload"]
    assert problems(Activations(offload=False, checkpointing="full")) == []


def run(tmp_path, name, plugins):
    train = {"output_dir": str(tmp_path / name), "max_steps": 3, "use_cpu": True, "logging_steps": 1, "seed": 1}
    model = tiny_model(attention_dropout=0.1)
    return Pipeline(model=model, tokenizer=tiny_tokenizer(), data=ROWS, plugins=plugins, train=train).run()


@pytest.mark.parametrize("others", [pytest.param([], marks=pytest.mark.slow), ["packing", "peft", "neftune"]])
def test_a_run_learns_the_same_and_the_model_is_restored(tmp_path, others):
    pytest.importorskip("peft")
    plain = run(tmp_path, "plain", others)
    less = run(tmp_path, "less", [*others, "activations:checkpointing=selective"])
    assert less.metrics["train_loss"] == pytest.approx(plain.metrics["train_loss"], rel=1e-6)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in less.model.modules())
    for one, two in zip(plain.model.parameters(), less.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)
