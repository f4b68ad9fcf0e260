"""The loss head gives the loss and gradients of full logits for every kind of head, and leaves the model unchanged."""

from __future__ import annotations

import copy
import gc
import math
import weakref

import pytest
import torch
from torch.nn import functional

from sftkit.testing import tiny_model
from sftkit.training import loss as loss_module
from sftkit.training.head import LossHead
from sftkit.training.loss import HeadLoss, OutputHead, summed_loss
from sftkit.training.targets import Targets, trained_positions

VOCABULARY = 320
ARCHITECTURES = [
    ("llama", {}),
    ("llama", {"tie_word_embeddings": True}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("mistral", {}),
    ("gemma", {}),
    ("gemma2", {"final_logit_softcapping": 5.0}),
    ("gemma3_text", {}),
    ("phi", {}),
    ("phi3", {}),
    ("gpt2", {}),
    ("opt", {}),
    ("gpt_neo", {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "num_heads": 4}),
    ("mixtral", {}),
    ("qwen3_moe", {}),
    ("granite", {"logits_scaling": 3.0}),
    ("cohere", {"logit_scale": 0.3}),
    ("gpt_neox", {}),
    ("mamba", {}),
]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """A few tokens take several chunks."""
    monkeypatch.setattr(loss_module, "CHUNK_BYTES_CPU", 16 * 4 * VOCABULARY)


def batch():
    torch.manual_seed(0)
    ids = torch.randint(3, 300, (3, 40))
    labels = ids.clone()
    labels[:, :13] = -100
    labels[1, 30:] = -100
    mask = torch.ones_like(ids)
    mask[1, 35:] = 0
    return {"input_ids": ids, "attention_mask": mask}, labels


def by_full_logits(model, inputs, labels, weights=None):
    """The sum of the losses and its gradients, from the model's own logits and torch's cross-entropy."""
    logits = model(**inputs, use_cache=False).logits.float()[:, -labels.shape[1] :]
    losses = functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
    total = (losses if weights is None else losses * weights[:, 1:]).sum()
    return total, gradients(model, total)


def by_the_head(model, inputs, labels, weights=None, loss=None):
    head = LossHead(model, loss or HeadLoss())
    with head.installed():
        total, result, outputs = head.ask(model, {**inputs, "use_cache": False}, Targets.of(labels, weights))
        return total, gradients(model, total), result, outputs, head


def gradients(model, total):
    model.zero_grad()
    (total / 7).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(one, two):
    assert one.keys() == two.keys()
    # The gradients of key biases are zero except for rounding, so all are compared with the largest gradient.
    scale = max(value.abs().max() for value in one.values())
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=2e-6 * float(scale), msg=name)


@pytest.mark.parametrize(("architecture", "options"), ARCHITECTURES)
def test_loss_and_gradients_equal_those_of_full_logits(architecture, options):
    model = tiny_model(architecture, **options).eval()
    inputs, labels = batch()
    total, expected = by_full_logits(model, inputs, labels)
    found, made, result, outputs, head = by_the_head(model, inputs, labels)
    torch.testing.assert_close(found, total)
    assert_equal(expected, made)
    assert not head.full_logits
    assert outputs["logits"] is None
    assert len(result.losses_K) == int((labels[:, 1:] != -100).sum())


@pytest.mark.parametrize(("architecture", "options"), [ARCHITECTURES[0], ARCHITECTURES[6], ("gpt2", {})])
def test_token_weights_scale_losses_and_gradients(architecture, options):
    model = tiny_model(architecture, **options).eval()
    inputs, labels = batch()
    weights = torch.rand(labels.shape)
    total, expected = by_full_logits(model, inputs, labels, weights)
    found, made, *_ = by_the_head(model, inputs, labels, weights)
    torch.testing.assert_close(found, total)
    assert_equal(expected, made)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
@pytest.mark.parametrize(
    "adapter",
    [
        {},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6]},
        {"target_modules": ["q_proj"], "bias": "all"},
    ],
)
def test_adapters_on_the_head_and_elsewhere_get_their_gradients(architecture, adapter):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **adapter)
    model = get_peft_model(tiny_model(architecture), config).eval()
    inputs, labels = batch()
    weights = torch.rand(labels.shape)
    total, expected = by_full_logits(model, inputs, labels, weights)
    found, made, *_ = by_the_head(model, inputs, labels, weights)
    torch.testing.assert_close(found, total)
    assert_equal(expected, made)


def test_virtual_tokens_before_the_rows_are_not_trained():
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(tiny_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    inputs, labels = batch()
    total, expected = by_full_logits(model, inputs, labels)
    found, made, *_ = by_the_head(model, inputs, labels)
    torch.testing.assert_close(found, total)
    assert_equal(expected, made)


def test_no_logits_of_untrained_positions_are_computed():
    model, seen = tiny_model().eval(), []
    inputs, labels = batch()
    linear = functional.linear

    def counted(hidden, weight, bias=None):
        made = linear(hidden, weight, bias)
        if made.shape[-1] == VOCABULARY:
            seen.append(made.shape[:-1].numel())
        return made

    head = LossHead(model, HeadLoss())
    with head.installed(), pytest.MonkeyPatch.context() as patch:
        head.ask(model, {**inputs, "use_cache": False}, Targets.of(labels))  # the first call also inspects the model
        patch.setattr(functional, "linear", counted)
        patch.setattr(torch._C._nn, "linear", counted)
        head.ask(model, {**inputs, "use_cache": False}, Targets.of(labels))
    assert sum(seen) == int((labels[:, 1:] != -100).sum())
    assert max(seen) == 16


def test_a_model_that_computes_its_logits_elsewhere_gets_full_logits_and_a_warning(caplog):
    model = tiny_model("llama").eval()
    head_module, forward = model.lm_head, model.forward

    def own(*args, **options):
        hidden = model.model(*args, **options).last_hidden_state
        return type(forward(*args, **options))(logits=functional.linear(hidden, head_module.weight) ** 3)

    model.forward = own
    inputs, labels = batch()
    total, expected = by_full_logits(model, inputs, labels)
    found, made, *_, head = by_the_head(model, inputs, labels)
    torch.testing.assert_close(found, total)
    assert_equal(expected, made)
    assert head.full_logits
    assert "the logits of every position are computed" in caplog.text


def test_a_model_without_output_embeddings_gets_full_logits_and_a_warning(caplog, monkeypatch):
    model = tiny_model("llama").eval()
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    inputs, labels = batch()
    total, expected = by_full_logits(model, inputs, labels)
    found, made, *_ = by_the_head(model, inputs, labels)
    torch.testing.assert_close(found, total)
    assert_equal(expected, made)
    assert "has no output embeddings" in caplog.text


def test_the_decoder_is_found_when_the_prefix_does_not_name_it():
    model = tiny_model("llama").eval()
    model.base_model_prefix = "language_model"
    inputs, labels = batch()
    total, expected = by_full_logits(model, inputs, labels)
    found, made, *_, head = by_the_head(model, inputs, labels)
    torch.testing.assert_close(found, total)
    assert_equal(expected, made)
    assert not head.full_logits


def test_the_loss_passes_through_the_output_of_the_head():
    model, through = tiny_model("llama").eval(), []
    inputs, labels = batch()
    head = LossHead(model, HeadLoss())
    with head.installed():
        model.lm_head.register_forward_hook(lambda *_: None)
        head.ask(model, {**inputs, "use_cache": False}, Targets.of(labels))
        # like wrappers that gather weights for the backward: they hook into the output
        model.lm_head.register_forward_hook(lambda _, __, output: output.register_hook(through.append) and None)
        head.ask(model, {**inputs, "use_cache": False}, Targets.of(labels))[0].backward()
    assert len(through) == 1


def test_the_model_is_unchanged_outside_the_context():
    model = tiny_model("gemma2").eval()
    inputs, labels = batch()
    before, attributes = model(**inputs).logits, [set(vars(module)) for module in model.modules()]
    *_, head = by_the_head(model, inputs, labels)
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert torch.equal(model(**inputs).logits, before)
    with head.installed():
        assert torch.equal(model(**inputs).logits, before)
        assert torch.equal(copy.deepcopy(model)(**inputs).logits, before)


def test_gradients_are_freed_without_the_garbage_collector():
    model = tiny_model().eval()
    inputs, labels = batch()
    head = LossHead(model, HeadLoss())
    gc.collect()
    gc.disable()
    try:
        with head.installed():
            total, result, outputs = head.ask(model, {**inputs, "use_cache": False}, Targets.of(labels))
            kept = weakref.ref(result)
            total.backward()
            del total, result, outputs
            assert kept() is None
    finally:
        gc.enable()


def test_autocast_keeps_its_dtype_and_gradients_are_close():
    model = tiny_model().eval()
    inputs, labels = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, expected = by_full_logits(model, inputs, labels)
        found, made, *_ = by_the_head(model, inputs, labels)
    torch.testing.assert_close(found, total, rtol=1e-3, atol=0)
    for name in expected:
        assert expected[name].dtype == made[name].dtype == torch.float32
        assert (expected[name] - made[name]).norm() <= 0.03 * expected[name].norm(), name


def test_a_batch_without_trained_tokens_has_a_loss_and_gradients_of_zero():
    model = tiny_model().eval()
    inputs, labels = batch()
    total, found, *_ = by_the_head(model, inputs, torch.full_like(labels, -100))
    assert total.item() == 0.0
    assert found.keys() == dict(model.named_parameters()).keys()
    assert all(value.abs().max() == 0 for value in found.values())


def test_token_accuracy_is_the_share_of_targets_with_the_highest_logit():
    model = tiny_model().eval()
    inputs, labels = batch()
    *_, result, _, _ = by_the_head(model, inputs, labels)
    best = model(**inputs).logits[:, :-1].argmax(-1)
    trained = labels[:, 1:] != -100
    expected = (best == labels[:, 1:])[trained].float()
    assert torch.equal(result.measures["token_accuracy"], expected)


def test_the_loss_can_be_differentiated_only_once():
    hidden, weight = torch.randn(4, 8, requires_grad=True), torch.nn.Parameter(torch.randn(16, 8))
    total, _ = summed_loss(HeadLoss(), hidden, OutputHead(16, lambda x: x, weight), torch.arange(4))
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="before"):
        total.backward()


def test_trained_positions_are_those_before_a_trained_label():
    labels = torch.tensor([[-100, 3, -100, 4, 5], [7, -100, -100, -100, 1]])
    assert trained_positions(labels).tolist() == [0, 2, 3, 8]


def test_the_loss_equals_a_loop_over_positions():
    torch.manual_seed(0)
    hidden, weight = torch.randn(9, 6), torch.randn(11, 6)
    targets = torch.randint(0, 11, (9,))
    total, _ = summed_loss(HeadLoss(), hidden, OutputHead(11, lambda x: x, weight), targets)
    expected = -sum(math.log(float(torch.softmax(weight @ h, 0)[t])) for h, t in zip(hidden, targets, strict=True))
    assert total.item() == pytest.approx(expected, rel=1e-5)
